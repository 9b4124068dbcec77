"""A batch: what one step is computed of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Batch:
    """A fixed number of rows, of which the first `count` are images; the others only fill it up. See ``mix.rows``.

    images: uint8 ``(batch, height, width, 3)``, or their features, float32; C-contiguous, zero in the other rows.
    targets: as the split's task has them, ``(batch, ...)``; the other rows add nothing to the loss.
    rows: int64 ``(count,)``, which of the split's images they are. Fewer, down to none, where some cannot be read and
    the split has them left out: see ``data.unread``.
    weight: what the loss's sum is divided by; None for what the targets add up to.
    """

    images: np.ndarray
    targets: np.ndarray
    rows: np.ndarray
    weight: float | None = None

    @property
    def count(self) -> int:
        return len(self.rows)
