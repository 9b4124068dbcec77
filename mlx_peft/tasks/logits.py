"""Logits, as they may leave the product."""

from __future__ import annotations

import numpy as np

from mlx_peft.core.errors import UserError


def finite(logits: np.ndarray, of: str = "the model") -> np.ndarray:
    """Logits in float64, as they may leave the product. Raises UserError where one is not finite.

    NaN compares as neither larger nor smaller, so that a metric or a likeliest class would be made of it in silence.
    """
    if not np.isfinite(logits).all():
        raise UserError(
            f"the logits of {of} are not finite: its training diverged, it overflows in its precision, or its "
            "weights or its preprocessing are damaged; try train.precision=float32, a lower train.optimizer.lr, or "
            "other weights"
        )
    return logits.astype(np.float64)
