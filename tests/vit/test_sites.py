"""Which layers and blocks a method's targets mean."""

import pytest
from pydantic import TypeAdapter, ValidationError

from mlx_peft.config.methods import BitFit, Full, LoRA
from mlx_peft.core.errors import UserError
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.sites import Targets, sites

SMALL = Architecture(img_size=32, patch_size=8, embed_dim=48, depth=4, num_heads=3)


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        (None, (0, 1, 2, 3)),
        ("last 2", (2, 3)),
        ("last2", (2, 3)),
        ("first 3", (0, 1, 2)),
        ("1-2", (1, 2)),
        ([0, -1], (0, 3)),
        ([-1, 3], (3,)),
    ],
)
def test_blocks_are_named_by_range_or_number(blocks, expected):
    assert LoRA(blocks=blocks).chosen_blocks(SMALL) == expected


@pytest.mark.parametrize("blocks", ["last 5", "2-4", "first 5", [4], [-5], "3-2", "last 0"])
def test_blocks_that_the_model_does_not_have_are_refused(blocks):
    with pytest.raises(UserError, match=r"method\.blocks"):
        LoRA(blocks=blocks).chosen_blocks(SMALL)


@pytest.mark.parametrize("blocks", ["last", "-4:", [], "four"])
def test_blocks_that_cannot_be_read_are_refused(blocks):
    with pytest.raises(UserError):
        LoRA(blocks=blocks)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("all-linear", ("qkv", "proj", "fc1", "fc2")),
        (["attention", "fc2"], ("qkv", "proj", "fc2")),
        ("mlp", ("fc1", "fc2")),
        ("q", ("q",)),
    ],
)
def test_groups_of_targets_are_spelled_out(written, meant):
    assert TypeAdapter(Targets).validate_python(written) == meant


@pytest.mark.parametrize("written", [["attention", "qkv"], ["qkv", "q"], [], "conv", ["patch_embed"], 7, [["qkv"]]])
def test_targets_that_repeat_or_are_unknown_are_refused(written):
    with pytest.raises(ValidationError):
        TypeAdapter(Targets).validate_python(written)


def test_sites_are_in_the_models_order_with_widths_and_parts():
    found = sites(SMALL, ("fc1", "v", "q"), (1, 3))
    assert [(s.path, s.outputs, s.inputs, s.parts, s.adapted) for s in found] == [
        (f"blocks.{i}.{path}", *rest)
        for i in (1, 3)
        for path, *rest in [("attn.qkv", 144, 48, ("q", "v"), 96), ("mlp.fc1", 192, 48, (), 192)]
    ]
    assert found[0].rows == [slice(0, 48), slice(96, 144)]


def test_swiglu_has_fc1_in_two():
    gated = SMALL.model_copy(update={"mlp_layer": "swiglu"})
    assert [site.name for site in sites(gated, ("fc1",), (0,))] == ["fc1_g", "fc1_x"]


def test_a_target_that_matches_nothing_is_named():
    with pytest.raises(UserError, match="'qkv' matches no layer"):
        sites(SMALL, ("qkv",), ())


def test_published_count_of_biases():
    """102,912 on ViT-B without the head (V-PETL Bench)."""
    from math import prod

    from mlx_peft.vit.registry import find
    from mlx_peft.vit.shapes import shapes

    base = find("vit_base_patch16_224").architecture
    sizes = shapes(base, 1)
    assert sum(prod(sizes[name]) for name in BitFit().selected(base)) == 102_912


def test_full_in_some_blocks_trains_nothing_outside_of_them():
    names = Full(blocks="last 1").selected(SMALL)
    assert names and all(name.startswith("blocks.3.") for name in names)
