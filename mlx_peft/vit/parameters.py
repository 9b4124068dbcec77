"""What a parameter's name says of it."""

from __future__ import annotations

HEADS = ("head", "head_dist")
"""The classifiers: trained under every method, and counted apart."""

TOKENS = ("cls_token", "dist_token", "reg_token", "pos_embed", "latent", "freqs", "relative_position_bias_table")
"""The parameters of tokens and of their positions, by their last names."""

BIASES = ("bias", "q_bias", "v_bias")
"""The biases of linear layers and norms, by their last names: q's and v's may stand beside a layer that has none."""

EXACT = ("freqs",)
"""The parameters that are never rounded, by their last names: an angle's error is a frequency's times a place."""


def is_head(name: str) -> bool:
    """Whether the parameter belongs to a classifier."""
    return name.partition(".")[0] in HEADS


def last(name: str) -> str:
    """A parameter's last name: ``weight`` of ``blocks.0.attn.qkv.weight``."""
    return name.rpartition(".")[2]


def decays(name: str, ndim: int) -> bool:
    """Whether weight decay applies: to matrices, but not to biases, norms, scales, tokens and positions."""
    return ndim > 1 and last(name) not in TOKENS
