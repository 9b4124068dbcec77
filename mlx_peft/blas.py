"""How MLX multiplies, settled before it is loaded: whoever imports ``mlx.core`` imports this before.

On Linux, MLX's CPU wheel is linked to the reference BLAS, some twenty times slower than OpenBLAS. An OpenBLAS that is
loaded first, with its symbols global, takes its place. Where torch is used in the same process it must be imported
first, or it gets the wrong BLAS in turn. A Mac has Accelerate and needs none of this.

On an M5 and on CUDA, MLX's float32 products have the 11 bits of TF32 unless MLX_ENABLE_TF32 is 0, which is set here
where nobody has set it: float32 is float32 in both backends, and small images are resized exactly. Whoever wants speed
says ``train.precision: bfloat16``.
"""

from __future__ import annotations

import ctypes
import os
import sys

os.environ.setdefault("MLX_ENABLE_TF32", "0")


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
