"""Quantised weights in MLX."""
