"""Where the part of a model ends that training does not change."""

from __future__ import annotations

import pytest

from mlx_peft.adaptation.prefix import Prefix, frozen_prefix
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.shapes import shapes

PLAIN = Architecture(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3)
TOKENS = 17
"""Of PLAIN: sixteen patches and the class token."""


def prefix(
    *trained: str, architecture: Architecture = PLAIN, added: tuple[str, ...] = (), drop_path: float = 0.0
) -> Prefix | None:
    return frozen_prefix(architecture, drop_path, [*shapes(architecture, 5), *added], {*trained, "head.weight"})


def test_under_the_head_alone_everything_is_frozen() -> None:
    assert prefix("head.bias") == Prefix(4, (1, 48), "the head")


def test_a_distilled_models_heads_read_two_vectors() -> None:
    distilled = PLAIN.model_copy(update={"distilled": True})
    assert prefix("head_dist.weight", architecture=distilled) == Prefix(4, (2, 48), "the head")


def test_the_first_block_that_is_trained_ends_it() -> None:
    assert prefix("blocks.2.norm1.weight", "blocks.1.mlp.fc1.bias", "norm.bias") == Prefix(1, (TOKENS, 48), "block 1")


def test_what_a_method_added_or_wrapped_ends_it_though_it_is_frozen() -> None:
    assert prefix(added=("blocks.2.attn.qkv.base_layer.weight",)) == Prefix(2, (TOKENS, 48), "block 2")


def test_what_blocks_share_ends_it_where_the_first_of_them_stands() -> None:
    added = ("shared.vera_A", "blocks.1.attn.qkv.vera_lambda_d")
    assert prefix(*added, added=added) == Prefix(1, (TOKENS, 48), "block 1")


@pytest.mark.parametrize(
    ("options", "trained", "rows"),
    [
        ({}, "norm.weight", 1),
        ({"distilled": True}, "norm.weight", 2),
        ({"global_pool": "avg"}, "fc_norm.weight", TOKENS),
        ({"global_pool": "map", "class_token": False}, "attn_pool.latent", TOKENS - 1),
    ],
)
def test_before_the_last_norm_it_has_the_tokens_that_are_read(
    options: dict[str, object], trained: str, rows: int
) -> None:
    architecture = Architecture(**(PLAIN.model_dump() | options))
    assert prefix(trained, architecture=architecture) == Prefix(3, (rows, 48), "the last norm")


@pytest.mark.parametrize("trained", ["blocks.0.attn.qkv.weight", "patch_embed.proj.bias", "cls_token", "pos_embed"])
def test_there_is_none_where_the_first_block_or_what_precedes_it_is_trained(trained: str) -> None:
    assert prefix(trained) is None


def test_there_is_none_where_a_method_changes_the_embedding() -> None:
    assert prefix(added=("patch_embed.ssf_scale",)) is None


def test_there_is_none_where_blocks_are_dropped_at_random() -> None:
    assert prefix(drop_path=0.1) is None
