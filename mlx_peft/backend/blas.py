"""How MLX multiplies, and whether it has room, settled first: whoever imports ``mlx.core`` imports this before it.

On Linux, MLX's CPU wheel is linked to the reference BLAS, many times slower than OpenBLAS (docs/doctor.md). An OpenBLAS
that is loaded first, with its symbols global, takes its place. Where torch is used in the same process it must be
imported first, or it gets the wrong BLAS in turn. A Mac has Accelerate and needs none of this.

On an M5 and on CUDA, MLX's float32 products have the 11 bits of TF32 unless MLX_ENABLE_TF32 is 0, which is set here
where nobody has set it: float32 is float32 in both backends, and small images are resized exactly. Whoever wants speed
says ``train.precision: bfloat16``.
"""

from __future__ import annotations

import os
import resource

from mlx_peft.core import openblas
from mlx_peft.core.errors import UserError

os.environ.setdefault("MLX_ENABLE_TF32", "0")


LEAST = 5 * 2**28
"""MLX needs so many bytes of address space. With fewer it does not fail: it tries for ever to get what it needs."""


def check_address_space(limit: int) -> None:
    """Raises UserError where a process may have no more than ``limit`` bytes of address space, and MLX needs more."""
    if limit != resource.RLIM_INFINITY and limit < LEAST:
        raise UserError(
            f"this process may have {limit / 2**30:.2f} GiB of address space (ulimit -v), and MLX needs "
            f"{LEAST / 2**30:.2f} GiB at least: raise the limit, or limit the memory in another way"
        )


check_address_space(resource.getrlimit(resource.RLIMIT_AS)[0])
FAST = openblas.prefer()
"""Whether MLX's products run at the machine's speed on the CPU."""
