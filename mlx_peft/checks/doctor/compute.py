"""What MLX computes with on Linux, where it brings neither a BLAS nor a compiler."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator

from mlx_peft.checks.doctor.finding import Finding, fault, fine, warning
from mlx_peft.checks.doctor.packages import installed
from mlx_peft.core import openblas


def blas() -> Iterator[Finding]:
    """Whether MLX multiplies at the processor's speed."""
    if sys.platform != "linux" or installed("mlx") is None:
        return
    if openblas.prefer():
        yield fine("BLAS", f"OpenBLAS ({openblas.LIBRARY}), which MLX takes")
    else:
        yield warning(
            "BLAS", "no OpenBLAS: on the CPU MLX multiplies many times slower, by the reference BLAS",
            f"apt install {openblas.PACKAGE} (Fedora: dnf install openblas-threads)",
        )  # fmt: skip


def compiler() -> Iterator[Finding]:
    """Whether MLX finds what it compiles its kernels with on the CPU."""
    if sys.platform != "linux" or installed("mlx") is None:
        return
    if (found := shutil.which("g++")) is not None:
        yield fine("compiler", found)
    else:
        yield fault(
            "compiler", "no g++, with which MLX compiles its kernels on the CPU: no step can be taken",
            "apt install g++; or set MLX_DISABLE_COMPILE=1, which is slower",
        )  # fmt: skip
