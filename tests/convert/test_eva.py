"""What timm's Eva is told, and what of it stands in an architecture."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.models.eva import checkpoint_filter_fn

from convert.base import Base, load_base
from convert.canonical import canonical
from convert.layouts.naming import must_agree
from convert.timm import beit, eva
from convert.timm.config import from_arguments, timm_arguments
from convert.timm.write import write_model
from mlx_peft.config.schema import Model
from mlx_peft.core.errors import UserError
from mlx_peft.vit.registry import altered, find, names
from mlx_peft.vit.shapes import shapes

EVAS = [name for name in names() if find(name).architecture.family == "eva"]
PATH = Path("config.json")


def test_what_a_model_of_timms_is_told_says_all_of_it():
    assert len(EVAS) == 60
    for name in EVAS:
        usual = find(name).architecture
        norms = {"norm_eps": usual.norm_eps, "norm_layer": usual.norm_layer}
        assert type(usual)(**eva.fields(eva.Words(**eva.words(usual))) | norms) == usual, name
        assert timm_arguments(usual, name) == {}


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("vit_small_patch16_dinov3", {"global_pool": "token", "depth": 2, "qkv_bias": True}),
        ("eva02_tiny_patch14_224", {"global_pool": "token", "mlp_layer": "swiglu"}),
        ("eva02_tiny_patch14_224", {"embed_dim": 96, "mlp_ratio": 4.0, "positions": "learnt"}),
        ("eva02_base_patch14_224", {"scale_mlp_norm": False, "fc_norm": False}),
        ("vit_pe_core_tiny_patch16_384", {"global_pool": "avg", "pool_include_prefix": False}),
        ("vit_pe_spatial_tiny_patch16_512", {"final_norm": True}),
        ("vit_small_patch16_rope_224", {"positions": "mixed", "rope_temperature": 10.0}),
    ],
)
def test_a_change_is_said_in_timms_words(name, args):
    usual = find(name).architecture
    changed = altered(usual, args, "args")
    said = timm_arguments(changed, name)
    assert said and None not in said.values()
    found = altered(usual, from_arguments(said, PATH, usual), "model_args")
    assert {**found.model_dump(), "fc_norm": found.norm_after_pool} == {
        **changed.model_dump(),
        "fc_norm": changed.norm_after_pool,
    }


@pytest.mark.parametrize(
    ("args", "field"),
    [
        ({"norm_eps": 1e-6}, "norm_eps"),
        ({"init_values": None}, "init_values"),
        ({"family": "vit"}, "family"),
        ({"global_pool": "token_avg", "fc_norm": False}, "global_pool"),
        ({"global_pool": "map"}, "pool_include_prefix"),
    ],
)
def test_what_timm_cannot_be_told_is_refused(args, field):
    usual = find("vit_small_patch16_dinov3").architecture
    with pytest.raises(UserError, match=f"cannot express .* another .*{field}"):
        timm_arguments(altered(usual, args, "args"), "vit_small_patch16_dinov3")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"num_kv_heads": 2}, "model_args: num_kv_heads: "),
        ({"rope_type": "mrope"}, "model_args: rope_type: unknown 'mrope'; known: cat, dinov3, mixed"),
        ({"rope_typ": "cat"}, "model_args: rope_typ: unknown key; did you mean 'rope_type'"),
        ({"attn_type": "rope", "qkv_fused": False}, "attn_type 'rope', qkv_fused False is not supported"),
        ({"rope_type": "mixed", "rope_rotate_half": True}, "rope_type 'mixed' and rope_rotate_half"),
        ({"use_fc_norm": True, "use_post_transformer_norm": True}, "both use_post_transformer_norm"),
        ({"ref_feat_shape": [16, 8]}, "model_args.ref_feat_shape: only squares"),
    ],
)
def test_what_is_not_here_is_refused(said, message):
    with pytest.raises(UserError, match=message):
        from_arguments(said, PATH, find("vit_small_patch16_dinov3").architecture)


JUNK = ([], {}, [None], [[1]], [1, 2], "", "x", "x" * 5000, -1, 0, 10**30, 1e308, math.inf, math.nan, True, False)
"""What JSON may have in the place of any value."""


@pytest.mark.parametrize(
    "name", ["vit_small_patch16_dinov3", "eva02_tiny_patch14_224", "beit_base_patch16_224", "vit_tiny_patch16_224"]
)
def test_whatever_a_word_has_for_a_value_is_understood_or_refused_in_few_words(name):
    usual = find(name).architecture
    refused = []
    for word in [*eva.Words.model_fields, *beit.Words.model_fields, "act_layer", "norm_layer", "in_chans", "mlp_layer"]:
        for value in JUNK:
            try:
                altered(usual, from_arguments({word: value}, PATH, usual), "args")
            except UserError as error:
                refused.append(str(error))
    assert len(refused) > 300 and max(map(len, refused)) < 1000


@pytest.mark.parametrize(
    "said",
    [
        {"use_post_norm": False, "attn_only_layer_scale": False, "use_naflex": False, "num_kv_heads": None},
        {"rope_shift_coords": 0.1, "rope_jitter_coords": 2.0, "rope_rescale_coords": 2.0, "head_init_scale": 1.0},
        {"ref_feat_shape": 16},  # of rope_type cat alone
    ],
)
def test_what_changes_nothing_may_be_said(said):
    usual = find("vit_small_patch16_dinov3").architecture
    assert altered(usual, from_arguments(said, PATH, usual), "args") == usual


def test_mixed_positions_count_from_zero_whatever_is_said_of_an_offset():
    usual = find("vit_small_patch16_rope_mixed_224").architecture
    said = {"rope_grid_offset": 1.0, "ref_feat_shape": [7, 7]}
    assert altered(usual, from_arguments(said, PATH, usual), "args") == usual
    for field, value in {"rope_grid_offset": 1.0, "ref_feat_shape": 7, "rope_rotate_half": True}.items():
        with pytest.raises(UserError, match=f"timm's config.json cannot express .*{field}"):
            timm_arguments(altered(usual, {field: value}, "args"), "vit_small_patch16_rope_mixed_224")


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_tiny_patch16_224", "beit_base_patch16_224"])
def test_layer_scales_of_zero_are_there_where_timm_has_them(name):
    said = {"init_values": 0.0, "depth": 1}
    model = timm.create_model(name, num_classes=3, **said)
    usual = find(name).architecture
    architecture = altered(usual, from_arguments(said, PATH, usual), "args")
    expected = {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}
    assert shapes(architecture, 3) == expected
    assert architecture.layer_scale == any("gamma" in key for key in expected)


@pytest.fixture(scope="module")
def mixed() -> Base:
    args = {"depth": 3, "embed_dim": 48, "num_heads": 3}
    return load_base(
        Model(name="vit_small_patch16_rope_mixed_224", weights="none", image_size=32, args=args), 5, seed=0
    )


def test_a_name_of_other_positions_contradicts_the_weights():
    dinov3 = find("vit_small_patch16_dinov3").architecture
    must_agree("vit_small_patch16_dinov3", dinov3, "the file", ())
    with pytest.raises(UserError, match="positions: rotary; the nearest name is vit_small_patch16_dinov3"):
        must_agree("vit_small_patch16_224", dinov3, "the file", ())


@pytest.mark.parametrize("name", ["eva02_base_patch16_clip_224", "eva02_tiny_patch14_224"])
def test_what_its_authors_call_otherwise_is_read_as_timm_reads_it(name):
    small = {"depth": 1, "embed_dim": 48, "num_heads": 3, "num_classes": 5}
    model = timm.create_model(name, **small)
    theirs = [("mlp.norm", "mlp.ffn_ln"), ("attn.norm", "attn.inner_attn_ln"), ("mlp.fc1_g", "mlp.w1")]
    theirs += [("mlp.fc1_x", "mlp.w2"), ("mlp.fc1", "mlp.w12"), ("mlp.fc2", "mlp.w3"), ("q_proj.bias", "q_bias")]
    theirs += [("v_proj.bias", "v_bias"), ("fc_norm", "norm")]
    old = {}
    for key, tensor in model.state_dict().items():
        for ours, of_them in theirs:
            key = key.replace(ours, of_them)
        old[key] = tensor
    extra = {"rope.freqs_cos": torch.ones(3), "blocks.0.attn.rope.freqs_sin": torch.ones(3)}
    extra |= {"mask_token": torch.ones(1, 1, 48), "lm_head.weight": torch.ones(7, 48)} if "tiny" in name else {}
    expected = {key: tensor.numpy() for key, tensor in checkpoint_filter_fn(old | extra, model).items()}
    found, notes = canonical({key: tensor.numpy() for key, tensor in (old | extra).items()}, "eva")
    assert found.keys() == expected.keys() == model.state_dict().keys()
    for key, tensor in expected.items():
        np.testing.assert_array_equal(found[key], tensor)
    assert [bool(notes)] == ["tiny" in name]


def test_frequencies_go_with_the_blocks_that_they_are_of(mixed, tmp_path):
    write_model(tmp_path / "m", base=mixed, tensors=mixed.tensors)
    args = {"depth": 2, "embed_dim": 48, "num_heads": 3}
    model = Model(name=mixed.name, weights=str(tmp_path / "m"), image_size=32, args=args)
    found = load_base(model, 5, seed=0)
    np.testing.assert_array_equal(found.tensors["rope.freqs"], mixed.tensors["rope.freqs"][:, :2])
