"""The system's OpenBLAS on Linux, where MLX's CPU wheel is linked to the reference BLAS."""

from __future__ import annotations

import ctypes
import sys

LIBRARY = "libopenblas.so.0"
PACKAGE = "libopenblas0-pthread"
"""That has it, in Debian and Ubuntu."""


def prefer() -> bool:
    """Loads it, with its symbols for all that is loaded later. False where it is wanted and not there."""
    if sys.platform != "linux":
        return True
    try:
        ctypes.CDLL(LIBRARY, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True
