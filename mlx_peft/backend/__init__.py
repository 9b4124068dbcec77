"""The MLX backend: a model, its methods and its training. ``torch_ref`` is its mirror, file for file."""

from mlx_peft.backend import blas as _blas  # noqa: F401  before anything of it imports mlx.core
