"""Where a reducer leaves fewer tokens, the frozen part of a model ends before, or where they are whole again."""

from __future__ import annotations

import pytest

from mlx_peft.adaptation.prefix import frozen_prefix
from mlx_peft.config.tokens_text import reducer_of
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.shapes import shapes

DEEP = Architecture(img_size=32, patch_size=8, embed_dim=48, depth=6, num_heads=3)


@pytest.mark.parametrize(
    ("tokens", "first", "end"),
    [
        ("tome r=2", 4, None),  # every block but the first is entered by fewer
        ("tome r=0", 4, 4),
        ("evit keep=0.5 blocks=[3,5]", 5, 3),
        ("evit keep=0.5 blocks=[3]", 2, 2),
        ("evit keep=1 blocks=[3]", 5, 5),
        ("skipvit keep=0.5 from=1 to=3", 3, 1),
        ("skipvit keep=0.5 from=1 to=3", 4, 4),  # all are back
    ],
)
def test_it_ends_where_the_tokens_are_those_of_a_plain_model(tokens: str, first: int, end: int | None) -> None:
    trained = {f"blocks.{first}.norm1.weight", "head.weight"}
    found = frozen_prefix(DEEP, 0.0, shapes(DEEP, 5), trained, reducer=reducer_of(tokens))
    assert (None if found is None else found.end) == end


@pytest.mark.parametrize("trained", ["head.weight", "norm.weight"])
def test_it_may_hold_every_block_where_the_heads_read_the_class_token(trained: str) -> None:
    wanted = shapes(DEEP, 5), {trained}
    plain, fewer = (frozen_prefix(DEEP, 0.0, *wanted, reducer=reducer_of(text)) for text in ("none", "tome r=2"))
    assert fewer == plain and fewer is not None and fewer.end >= DEEP.depth


def test_behind_the_blocks_patches_that_are_averaged_are_fewer() -> None:
    averaged = DEEP.model_copy(update={"global_pool": "avg", "fc_norm": False})
    assert frozen_prefix(averaged, 0.0, shapes(averaged, 5), {"norm.weight"}, reducer=reducer_of("tome r=2")) is None
