"""The parameters of an architecture: their names and shapes, as timm has them."""

from __future__ import annotations

from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.parameters import HEADS
from mlx_peft.vit.places import PARAMETERS

Shapes = dict[str, tuple[int, ...]]
"""Of tensors, by name."""


def heads(architecture: Architecture) -> tuple[str, ...]:
    """The names of the classifiers: a distilled model has two."""
    return HEADS if architecture.distilled else HEADS[:1]


def shapes(architecture: Architecture, num_classes: int) -> Shapes:
    """Every parameter of timm's model by name, in torch's layout: ``(out, in)``, and ``(dim, 3, patch, patch)``."""
    dim, patch = architecture.embed_dim, architecture.patch_size
    result: Shapes = {}

    def linear(name: str, outputs: int, inputs: int, bias: bool = True) -> None:
        result[f"{name}.weight"] = (outputs, inputs)
        if bias:
            result[f"{name}.bias"] = (outputs,)

    def norm(name: str, width: int, present: bool = True) -> None:
        if present:
            result[f"{name}.weight"] = (width,)
            if architecture.norm_layer == "layernorm":
                result[f"{name}.bias"] = (width,)

    for kind, count in architecture.places.only(PARAMETERS).runs:
        result[PARAMETERS[kind]] = (1, count, dim)
    if architecture.pos_embed:
        result["pos_embed"] = (1, architecture.position_tokens, dim)
    result["patch_embed.proj.weight"] = (dim, 3, patch, patch)
    if not architecture.pre_norm:
        result["patch_embed.proj.bias"] = (dim,)
    norm("patch_embed.norm", dim, architecture.embed_norm)
    norm("norm_pre", dim, architecture.pre_norm)

    projections = {"fused": {"qkv": 3 * dim}}[architecture.qkv]
    gated = {"mlp": ("fc1",), "swiglu": ("fc1_g", "fc1_x"), "swiglu_packed": ("fc1",)}[architecture.mlp_layer]
    hidden = architecture.hidden_dim
    inner = hidden // 2 if architecture.mlp_layer == "swiglu_packed" else hidden
    for block in (f"blocks.{index}" for index in range(architecture.depth)):
        norm(f"{block}.norm1", dim)
        for name, outputs in projections.items():
            linear(f"{block}.attn.{name}", outputs, dim, architecture.qkv_bias)
        norm(f"{block}.attn.q_norm", dim // architecture.num_heads, architecture.qk_norm)
        norm(f"{block}.attn.k_norm", dim // architecture.num_heads, architecture.qk_norm)
        norm(f"{block}.attn.norm", dim, architecture.scale_attn_norm)
        linear(f"{block}.attn.proj", dim, dim, architecture.proj_bias)
        norm(f"{block}.norm2", dim)
        for name in gated:
            linear(f"{block}.mlp.{name}", hidden, dim, architecture.proj_bias)
        norm(f"{block}.mlp.norm", inner, architecture.scale_mlp_norm)
        linear(f"{block}.mlp.fc2", dim, inner, architecture.proj_bias)
        if architecture.init_values:  # as timm: none at 0 either
            result |= {f"{block}.ls1.gamma": (dim,), f"{block}.ls2.gamma": (dim,)}

    norm("norm", dim, architecture.final_norm and not architecture.norm_after_pool)
    if architecture.global_pool == "map":
        result["attn_pool.latent"] = (1, 1, dim)
        linear("attn_pool.q", dim, dim)
        linear("attn_pool.kv", 2 * dim, dim)
        linear("attn_pool.proj", dim, dim)
        norm("attn_pool.norm", dim)
        linear("attn_pool.mlp.fc1", hidden, dim)
        linear("attn_pool.mlp.fc2", dim, hidden)
    norm("fc_norm", dim, architecture.final_norm and architecture.norm_after_pool)
    for head in heads(architecture):
        linear(head, num_classes, architecture.feature_dim)
    return result
