"""The Vision Transformer in MLX."""

from mlx_peft.blas import prefer_openblas

prefer_openblas()
