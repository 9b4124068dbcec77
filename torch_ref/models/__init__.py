"""The Vision Transformer in PyTorch, file for file the mirror of ``mlx_peft.models``."""
