"""The Vision Transformer in MLX."""
