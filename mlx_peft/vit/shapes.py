"""The parameters of an architecture: their names and shapes, as timm has them."""

from __future__ import annotations

from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.parameters import HEADS
from mlx_peft.vit.places import PARAMETERS
from mlx_peft.vit.relative import TABLE, table_shape

Shapes = dict[str, tuple[int, ...]]
"""The shapes of tensors, by the tensors' names."""


GAMMAS = {"vit": ("ls1.gamma", "ls2.gamma"), "eva": ("gamma_1", "gamma_2"), "beit": ("gamma_1", "gamma_2")}
"""A block's layer scales, of attention and of the MLP, by family."""


def heads(architecture: Architecture) -> tuple[str, ...]:
    """The names of the classifiers: a distilled model has two."""
    return HEADS if architecture.distilled else HEADS[:1]


def shapes(architecture: Architecture, num_classes: int) -> Shapes:
    """Every parameter of timm's model by name, in torch's layout: ``(out, in)``, and ``(dim, 3, patch, patch)``."""
    dim, patch = architecture.embed_dim, architecture.patch_size
    result: Shapes = {}
    for kind, count in architecture.places.only(PARAMETERS).runs:
        result[PARAMETERS[kind]] = (1, count, dim)
    if architecture.pos_embed:
        result["pos_embed"] = (1, architecture.position_tokens, dim)
    if architecture.positions == "mixed":
        result["rope.freqs"] = (2, architecture.depth, architecture.num_heads, architecture.head_dim // 2)
    if architecture.positions == "relative_shared":
        result[f"rel_pos_bias.{TABLE}"] = table_shape(architecture)
    result["patch_embed.proj.weight"] = (dim, 3, patch, patch)
    if not architecture.pre_norm:
        result["patch_embed.proj.bias"] = (dim,)
    if architecture.embed_norm:
        result |= norm_shapes(architecture, "patch_embed.norm", dim)
    if architecture.pre_norm:
        result |= norm_shapes(architecture, "norm_pre", dim)
    for index in range(architecture.depth):
        result |= block_shapes(architecture, f"blocks.{index}")
    if architecture.final_norm and not architecture.norm_after_pool:
        result |= norm_shapes(architecture, "norm", dim)
    if architecture.global_pool == "map":
        result |= _attention_pooling(architecture)
    if architecture.final_norm and architecture.norm_after_pool:
        result |= norm_shapes(architecture, "fc_norm", dim)
    for head in heads(architecture):
        result |= _linear(head, num_classes, architecture.feature_dim)
    return result


def block_shapes(architecture: Architecture, block: str) -> Shapes:
    """A transformer block of a name: attention, then the MLP, each behind its norm."""
    dim, bias = architecture.embed_dim, architecture.proj_bias
    result = norm_shapes(architecture, f"{block}.norm1", dim)
    result |= PROJECTIONS[architecture.qkv](f"{block}.attn", dim, architecture.qkv_bias)
    if architecture.positions == "relative":
        result[f"{block}.attn.{TABLE}"] = table_shape(architecture)
    if architecture.qk_norm:
        for name in ("q_norm", "k_norm"):
            result |= norm_shapes(architecture, f"{block}.attn.{name}", architecture.head_dim)
    if architecture.scale_attn_norm:
        result |= norm_shapes(architecture, f"{block}.attn.norm", dim)
    result |= _linear(f"{block}.attn.proj", dim, dim, bias)
    result |= norm_shapes(architecture, f"{block}.norm2", dim)
    first = {"mlp": ("fc1",), "swiglu": ("fc1_g", "fc1_x"), "swiglu_packed": ("fc1",)}[architecture.mlp_layer]
    hidden = architecture.hidden_dim
    inner = hidden // 2 if architecture.mlp_layer == "swiglu_packed" else hidden
    for name in first:
        result |= _linear(f"{block}.mlp.{name}", hidden, dim, bias)
    if architecture.scale_mlp_norm:
        result |= norm_shapes(architecture, f"{block}.mlp.norm", inner)
    result |= _linear(f"{block}.mlp.fc2", dim, inner, bias)
    if architecture.layer_scale:
        result |= {f"{block}.{name}": (dim,) for name in GAMMAS[architecture.family]}
    return result


def _fused(attention: str, dim: int, bias: bool) -> Shapes:
    return _linear(f"{attention}.qkv", 3 * dim, dim, bias)


def _biases_apart(attention: str, dim: int, bias: bool) -> Shapes:
    apart = {f"{attention}.q_bias": (dim,), f"{attention}.v_bias": (dim,)} if bias else {}
    return _linear(f"{attention}.qkv", 3 * dim, dim, bias=False) | apart


def _split(attention: str, dim: int, bias: bool) -> Shapes:
    q, k, v = (f"{attention}.{name}_proj" for name in "qkv")
    return _linear(q, dim, dim, bias) | _linear(k, dim, dim, bias=False) | _linear(v, dim, dim, bias)


def _attention_pooling(architecture: Architecture) -> Shapes:
    """A latent query that attends to all tokens, and an MLP behind it."""
    dim, hidden = architecture.embed_dim, architecture.pool_hidden_dim
    return {
        "attn_pool.latent": (1, 1, dim),
        **_linear("attn_pool.q", dim, dim),
        **_linear("attn_pool.kv", 2 * dim, dim),
        **_linear("attn_pool.proj", dim, dim),
        **norm_shapes(architecture, "attn_pool.norm", dim),
        **_linear("attn_pool.mlp.fc1", hidden, dim),
        **_linear("attn_pool.mlp.fc2", dim, hidden),
    }


def _linear(name: str, outputs: int, inputs: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def norm_shapes(architecture: Architecture, name: str, width: int) -> Shapes:
    """The architecture's norm of a name, over so many channels."""
    kinds = ("weight", "bias") if architecture.norm_layer == "layernorm" else ("weight",)
    return {f"{name}.{kind}": (width,) for kind in kinds}


PROJECTIONS = {"fused": _fused, "biases_apart": _biases_apart, "split": _split}
"""What makes q, k and v, by how they are stored."""
