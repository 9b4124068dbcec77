"""Quantised weights in MLX."""

from mlx_peft import blas as _blas  # noqa: F401  before mlx.core
