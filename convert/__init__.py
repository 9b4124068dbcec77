"""Checkpoints in and out, with NumPy and safetensors alone."""
