"""A model as Google saved its own, by the names and shapes of flax's modules, which timm reads too."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def googles(state: Mapping[str, np.ndarray], heads: int) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz``, from timm's state dictionary."""
    dim = state["cls_token"].shape[-1]
    result = {
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for i in range(len({name.split(".")[1] for name in state if name.startswith("blocks.")})):
        theirs, ours = f"Transformer/encoderblock_{i}", f"blocks.{i}"
        attention = f"{theirs}/MultiHeadDotProductAttention_1"
        for part, name in enumerate(("query", "key", "value")):
            rows = slice(part * dim, (part + 1) * dim)
            result[f"{attention}/{name}/kernel"] = state[f"{ours}.attn.qkv.weight"][rows].T.reshape(dim, heads, -1)
            result[f"{attention}/{name}/bias"] = state[f"{ours}.attn.qkv.bias"][rows].reshape(heads, -1)
        result[f"{attention}/out/kernel"] = state[f"{ours}.attn.proj.weight"].T.reshape(heads, -1, dim)
        result[f"{attention}/out/bias"] = state[f"{ours}.attn.proj.bias"]
        for norm, name in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            result[f"{theirs}/{name}/scale"] = state[f"{ours}.{norm}.weight"]
            result[f"{theirs}/{name}/bias"] = state[f"{ours}.{norm}.bias"]
        for fc, name in (("fc1", "Dense_0"), ("fc2", "Dense_1")):
            result[f"{theirs}/MlpBlock_3/{name}/kernel"] = state[f"{ours}.mlp.{fc}.weight"].T
            result[f"{theirs}/MlpBlock_3/{name}/bias"] = state[f"{ours}.mlp.{fc}.bias"]
    return result
