"""Which row of a batch has which of several adapters, in numbers that a device can look up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def assignment(rows: Sequence[int | None], count: int) -> NDArray[np.int32]:
    """For each row the place of its adapter among ``count`` that are stacked, int32 ``(batch,)``.

    A row without an adapter, None, gets the place behind the last one, where what changes nothing stands.

    Raises ValueError for a number that no adapter has: a device does not refuse it, but reads what lies there.
    """
    if outside := [row for row in rows if row is not None and not 0 <= row < count]:
        raise ValueError(f"there is no adapter {outside[0]} among {count}, counted from 0")
    return np.array([count if row is None else row for row in rows], np.int32)
