"""How far one array is from another."""

from __future__ import annotations

from typing import Any

import numpy as np

LOGITS = 1e-5
"""Largest ``relative`` in float32: a few hundred roundings of 1.2e-7 each."""


def relative(a: Any, b: Any) -> float:
    """||a - b|| / ||b||, in float64. What is not a number is near nothing; two arrays of zeros are equal."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), np.finfo(np.float64).tiny))
