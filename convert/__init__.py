"""Checkpoints in and out, with NumPy and safetensors alone.

``base`` is the model that an experiment starts from; ``timm`` and ``layouts`` are how whole models lie on disk,
``adapters`` how what was trained does; ``codes`` is what few bits stand for.
"""
