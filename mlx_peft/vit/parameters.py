"""What a parameter's name says of it."""

from __future__ import annotations

HEADS = ("head", "head_dist")
"""The classifiers: trained under every method, and counted apart."""

TOKENS = ("cls_token", "dist_token", "reg_token", "pos_embed", "latent", "prompts")
"""By their last names."""

SCALE = "lsq_scale"
"""Last name of a weight's trained scales: quantisation-aware training has them under every method."""


def is_head(name: str) -> bool:
    """Whether the parameter belongs to a classifier."""
    return name.partition(".")[0] in HEADS


def decays(name: str, ndim: int) -> bool:
    """Whether weight decay applies: to matrices, but not to biases, norms, scales, tokens and positions."""
    return ndim > 1 and name.rpartition(".")[2] not in (*TOKENS, SCALE)


KEPT = ("vera_A", "vera_B", "pissa_A", "pissa_B", "lora_magnitude_rest")
"""Last names of tensors that a method keeps frozen beside what it trains: an adapter is not whole without them."""


def is_kept(name: str) -> bool:
    """Whether the parameter is such a tensor."""
    return name.rpartition(".")[2] in KEPT
