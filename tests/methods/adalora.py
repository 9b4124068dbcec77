"""A small AdaLoRA, and its triplets."""

import numpy as np

ROUNDING = 2e-6
"""Relative, float32: two orders of the same few sums."""

AVERAGED = 1e-3
"""Relative: products of three small gradients, each with some 1e-5 of rounding, of which differences are taken."""

WIDTH, HIDDEN, DEPTH, CLASSES = 48, 192, 3, 5
METHOD = {"name": "adalora", "init_rank": 4, "target_rank": 2, "alpha": 6.0, "targets": ["q", "v", "proj", "fc2"]}
SHAPES = {"attn.qkv/q": (48, 48), "attn.qkv/v": (48, 48), "attn.proj": (48, 48), "mlp.fc2": (48, 192)}
ADAPTERS = [f"blocks.{block}.{layer}" for block in range(DEPTH) for layer in SHAPES]
SGD = {"name": "sgd", "momentum": 0.0}


def triplets(tensors, adapter):
    """A, B, E of an adapter, float64, from tensors by parameter."""
    path, _, part = adapter.partition("/")
    A, B, E = (np.asarray(tensors[f"{path}.lora_{kind}"], np.float64) for kind in "ABE")
    if not part:
        return A, B, E
    half = ("q", "v").index(part)
    return np.split(A, 2)[half], np.split(B, 2)[half], np.split(E, 2)[half]
