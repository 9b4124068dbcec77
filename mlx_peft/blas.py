"""On Linux, MLX's CPU wheel is linked to the reference BLAS, some twenty times slower than OpenBLAS.

An OpenBLAS that is loaded first, with its symbols global, takes its place; whoever is about to import ``mlx.core``
calls ``prefer_openblas`` before. Where torch is used in the same process it must be imported first, or it gets the
wrong BLAS in turn. A Mac has Accelerate and needs none of this.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import sys


def prefer_openblas() -> bool:
    """Loads the system's OpenBLAS (Debian and Ubuntu: ``libopenblas0-pthread``). Returns whether one was found."""
    if sys.platform != "linux" or "mlx.core" in sys.modules:
        return False
    try:
        ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True
