"""On Linux, MLX's CPU wheel is linked to the reference BLAS, some twenty times slower than OpenBLAS.

An OpenBLAS that is loaded first, with its symbols global, takes its place: importing this module loads it, and whoever
imports ``mlx.core`` imports this before. Where torch is used in the same process it must be imported first, or it gets
the wrong BLAS in turn. A Mac has Accelerate and needs none of this.
"""

from __future__ import annotations

import ctypes
import sys


def prefer_openblas() -> bool:
    """Loads the system's OpenBLAS (Debian and Ubuntu: ``libopenblas0-pthread``). Returns False where there is none."""
    if sys.platform != "linux":
        return True
    try:
        ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


FAST = prefer_openblas()
"""Whether MLX's products run at the machine's speed on the CPU."""
