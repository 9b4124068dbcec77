"""The names of transformers' tensors, as every version has them on disk, and what has none of ours."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from convert.files import renamed
from convert.layouts.renaming import Pair, layer, pair
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.vit.architecture import Architecture

TEXT = r"(text_model|text_projection|logit_scale|logit_bias)(\..*)?"
"""What CLIP and SigLIP have beside the vision tower."""

LEFT_OUT = {
    r"pooler\.dense\..*": "pooler: the layer behind the class token that only some uses want is left out",
    r"embeddings\.mask_token": "mask_token: left out, it is only used in pretraining",
    TEXT: "the text tower is left out",
}
"""Tensors of these names have no place in a classifier; the note on each."""


def _batched(tensor: np.ndarray) -> np.ndarray:
    return tensor.reshape(1, *tensor.shape) if tensor.ndim == 2 else tensor.reshape(1, 1, -1)


def _unbatched(tensor: np.ndarray) -> np.ndarray:
    return tensor.reshape(-1)


def _rows(tensor: np.ndarray) -> np.ndarray:
    return tensor.reshape(tensor.shape[1:])


BERT = [
    *pair("cls_token", "embeddings.cls_token"),
    *pair("pos_embed", "embeddings.position_embeddings"),
    *layer("patch_embed.proj", "embeddings.patch_embeddings.projection"),
    *layer("blocks.{i}.attn.qkv", *(f"encoder.layer.{{i}}.attention.attention.{n}" for n in ("query", "key", "value"))),
    *layer("blocks.{i}.attn.proj", "encoder.layer.{i}.attention.output.dense"),
    *layer("norm", "layernorm"),
]
"""The names that ViT, DeiT and DINOv2 have in common."""

VIT = [
    *BERT,
    *layer("blocks.{i}.norm1", "encoder.layer.{i}.layernorm_before"),
    *layer("blocks.{i}.norm2", "encoder.layer.{i}.layernorm_after"),
    *layer("blocks.{i}.mlp.fc1", "encoder.layer.{i}.intermediate.dense"),
    *layer("blocks.{i}.mlp.fc2", "encoder.layer.{i}.output.dense"),
]
DEIT = [*VIT, *pair("reg_token", "embeddings.distillation_token")]
DEIT_TEACHER = [*VIT, *pair("dist_token", "embeddings.distillation_token")]
DINOV2 = [
    *BERT,
    *layer("blocks.{i}.norm1", "encoder.layer.{i}.norm1"),
    *layer("blocks.{i}.norm2", "encoder.layer.{i}.norm2"),
    *pair("blocks.{i}.ls1.gamma", "encoder.layer.{i}.layer_scale1.lambda1"),
    *pair("blocks.{i}.ls2.gamma", "encoder.layer.{i}.layer_scale2.lambda1"),
]
PLAIN_MLP = [
    *layer("blocks.{i}.mlp.fc1", "encoder.layer.{i}.mlp.fc1"),
    *layer("blocks.{i}.mlp.fc2", "encoder.layer.{i}.mlp.fc2"),
]
SWIGLU = [
    *layer("blocks.{i}.mlp.fc1", "encoder.layer.{i}.mlp.weights_in"),
    *layer("blocks.{i}.mlp.fc2", "encoder.layer.{i}.mlp.weights_out"),
]
REGISTERS = pair("reg_token", "embeddings.register_tokens")


def dinov2(architecture: Architecture) -> list[Pair]:
    """DINOv2's, with the MLP that its configuration decides."""
    return [*DINOV2, *(SWIGLU if architecture.mlp_layer == "swiglu_packed" else PLAIN_MLP)]


def dinov2_with_registers(architecture: Architecture) -> list[Pair]:
    """The same with registers."""
    return [*dinov2(architecture), *REGISTERS]


TOWER = [
    *pair("pos_embed", "embeddings.position_embedding.weight", to_ours=_batched, to_theirs=_rows),
    *layer("patch_embed.proj", "embeddings.patch_embedding"),
    *layer("blocks.{i}.norm1", "encoder.layers.{i}.layer_norm1"),
    *layer("blocks.{i}.attn.qkv", *(f"encoder.layers.{{i}}.self_attn.{name}_proj" for name in "qkv")),
    *layer("blocks.{i}.attn.proj", "encoder.layers.{i}.self_attn.out_proj"),
    *layer("blocks.{i}.norm2", "encoder.layers.{i}.layer_norm2"),
    *layer("blocks.{i}.mlp.fc1", "encoder.layers.{i}.mlp.fc1"),
    *layer("blocks.{i}.mlp.fc2", "encoder.layers.{i}.mlp.fc2"),
    *layer("norm", "post_layernorm"),
]
"""The names that CLIP's and SigLIP's vision towers have in common."""

CLIP = [
    *TOWER,
    *pair("cls_token", "embeddings.class_embedding", to_ours=_batched, to_theirs=_unbatched),
    *layer("norm_pre", "pre_layrnorm"),
]
SIGLIP = [
    *TOWER,
    *pair("attn_pool.latent", "head.probe"),
    *pair("attn_pool.in_proj.weight", "head.attention.in_proj_weight"),
    *pair("attn_pool.in_proj.bias", "head.attention.in_proj_bias"),
    *layer("attn_pool.proj", "head.attention.out_proj"),
    *layer("attn_pool.norm", "head.layernorm"),
    *layer("attn_pool.mlp.fc1", "head.mlp.fc1"),
    *layer("attn_pool.mlp.fc2", "head.mlp.fc2"),
]

CLASSIFIER = layer("head", "classifier")
TEACHER = [*layer("head", "cls_classifier"), *layer("head_dist", "distillation_classifier")]
PROJECTION = pair("head.weight", "visual_projection.weight")

_IN_MEMORY = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "mlp.weights_out": "mlp.down_proj",
}
_BERT_IN_MEMORY = {"encoder.layer.": "layers.", "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2"}
_GATES = {"mlp.weights_in": ("mlp.gate_proj", "mlp.up_proj")}
"""The halves of SwiGLU's first layer, which version 5 has apart in memory and whole on disk."""


def in_memory(pairs: Iterable[Pair]) -> list[Pair]:
    """The same tensors under the names that version 5 has in memory: those of layers, which adapters go by."""
    every = list(pairs)
    bert = any("layernorm_before" in name for one in every for name in one.theirs)

    def renamed_in(name: str) -> str:
        for old, new in {**_IN_MEMORY, **(_BERT_IN_MEMORY if bert else {})}.items():
            name = name.replace(old, new)
        return name

    found = []
    for one in every:
        halves = next((gate for gate in _GATES if gate in one.theirs[0]), None)
        names = (one.theirs[0].replace(halves, gate) for gate in _GATES[halves]) if halves else one.theirs
        found.append(replace(one, theirs=tuple(map(renamed_in, names))))
    return found


_PARTS = {"q": "attention.query", "k": "attention.key", "v": "attention.value", "o": "output.dense"}
_RENAMED = [
    (
        re.compile(
            r"(^|\.)(?<!encoder\.)layers\."
            r"(\d+\.(?:attention\.[qkvo]_proj|layernorm_|mlp\.|lambda_|relative_position_bias\.))"
        ),
        r"\1encoder.layer.\2",
    ),
    (re.compile(r"(layer\.\d+)\.relative_position_bias\."), r"\1.attention.attention.relative_position_bias."),
    (re.compile(r"(^|\.)shared_position_bias\."), r"\1encoder.relative_position_bias."),
    *((re.compile(rf"(layer\.\d+\.attention)\.{key}_proj\."), rf"\1.{name}.") for key, name in _PARTS.items()),
]
_MLP = [("mlp.fc1.", "intermediate.dense."), ("mlp.fc2.", "output.dense.")]


def as_on_disk(tensors: Tensors) -> Tensors:
    """Version 5 has other names in memory, which a ``state_dict()`` shows, than in the files it writes: the latter."""
    bert = any("layernorm_before" in name for name in tensors)
    gates: dict[str, dict[str, np.ndarray]] = {}
    result: Tensors = {}

    def on_disk(name: str) -> str:
        for pattern, new in _RENAMED:
            name = pattern.sub(new, name)
        for old, replacement in _MLP if bert else ():
            name = name.replace(f".{old}", f".{replacement}")
        return name.replace(".mlp.down_proj.", ".mlp.weights_out.")

    for name, tensor in renamed(tensors, on_disk).items():
        if match := re.fullmatch(r"(.*\.mlp)\.(gate|up)_proj\.(weight|bias)", name):
            gates.setdefault(f"{match[1]}.weights_in.{match[3]}", {})[match[2]] = tensor
        else:
            result[name] = tensor
    for name, halves in gates.items():
        if name in result:
            raise UserError(f"the weights: {name} is there, and its halves gate_proj and up_proj too: leave one out")
        if halves.keys() == {"gate", "up"}:
            result[name] = np.concatenate([halves["gate"], halves["up"]])
        else:
            result |= {name.replace("weights_in", f"{half}_proj"): tensor for half, tensor in halves.items()}
    return result
