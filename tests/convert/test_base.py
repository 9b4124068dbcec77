"""Weights in: what is loaded, what is fitted, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.numpy import save_file
from timm.models.vision_transformer import checkpoint_filter_fn

from convert.base import Base, load_base
from convert.layouts.layout import Asked
from convert.open import open_path
from mlx_peft.config.schema import Model
from mlx_peft.core.errors import UserError
from mlx_peft.vit.initial import initial_head
from mlx_peft.vit.parameters import is_head
from mlx_peft.vit.registry import find
from mlx_peft.vit.shapes import shapes

Tiny = Callable[..., Base]
Changes = Callable[[tuple[str, ...]], list[str]]
Saved = Callable[[dict[str, np.ndarray]], str]

SIZES = {"depth": 3, "embed_dim": 24, "num_heads": 3}
NAME = "deit_tiny_patch16_224"


def model(weights: str, name: str = NAME, image_size: int | None = 64, **args: object) -> Model:
    return Model(name=name, weights=weights, image_size=image_size, args=SIZES | args)  # type: ignore[arg-type]


def test_random_weights_are_those_of_the_seed() -> None:
    base = load_base(model("none"), 5, seed=7)
    assert (base.name, base.source, base.notes) == ("deit_tiny_patch16_224", "random", ())
    assert base.architecture.depth == 3 and base.architecture.img_size == 64
    assert base.preprocessing == find(NAME).preprocessing
    assert {name: tensor.shape for name, tensor in base.tensors.items()} == shapes(base.architecture, 5)
    again, other = load_base(model("none"), 5, seed=7), load_base(model("none"), 5, seed=8)
    assert base.sha256 == again.sha256 != other.sha256


def test_a_file_comes_back_as_it_was(tiny: Tiny, saved: Saved, changes: Changes) -> None:
    old = tiny(NAME)
    base = load_base(model(saved(old.tensors)), None, seed=0)
    assert changes(base.notes) == []
    assert base.tensors.keys() == old.tensors.keys()
    for name, tensor in old.tensors.items():
        np.testing.assert_array_equal(base.tensors[name], tensor)
        assert base.tensors[name].dtype == np.float32 and base.tensors[name].flags.c_contiguous


@pytest.mark.parametrize("name", [NAME, "deit_tiny_distilled_patch16_224"])
def test_a_head_of_another_width_is_replaced_and_said(name: str, tiny: Tiny, saved: Saved) -> None:
    old = tiny(name)
    base = load_base(model(saved(old.tensors), name), 9, seed=2)
    assert base.notes == ("head: a new one for 9 classes, the weights have one for 5",)
    for key, tensor in initial_head(base.architecture, 9, seed=2).items():
        np.testing.assert_array_equal(base.tensors[key], tensor)


def test_weights_without_a_head_get_one(tiny: Tiny, saved: Saved) -> None:
    tensors = {name: tensor for name, tensor in tiny(NAME).tensors.items() if not name.startswith("head")}
    base = load_base(model(saved(tensors)), 5, seed=0)
    assert base.notes == ("head: a new one for 5 classes, the weights have none",)


def test_the_hash_is_of_the_weights_as_found(tiny: Tiny, saved: Saved) -> None:
    old = tiny(NAME)
    first = load_base(model(saved(old.tensors)), 5, seed=0)
    assert load_base(model(saved(old.tensors), image_size=96), 9, seed=1).sha256 == first.sha256
    changed = old.tensors | {"norm.bias": old.tensors["norm.bias"] + 1}
    assert load_base(model(saved(changed)), 5, seed=0).sha256 != first.sha256


@pytest.mark.parametrize(
    ("name", "patch"),
    [
        (NAME, 16),
        ("deit_tiny_distilled_patch16_224", 16),
        ("vit_small_patch14_reg4_dinov2", 14),
        ("flexivit_small", 16),
    ],
)
def test_the_position_grid_is_resized_as_timm_does(
    name: str, patch: int, tiny: Tiny, saved: Saved, changes: Changes
) -> None:
    old = tiny(name, image_size=6 * patch)
    base = load_base(model(saved(old.tensors), f"{name}.{find(name).tag}", image_size=4 * patch), None, seed=0)
    assert changes(base.notes) == ["pos_embed: 6 x 6 resized to 4 x 4"]
    theirs = timm.create_model(name, img_size=4 * patch, num_classes=5, **SIZES)
    settings = find(name).resampling
    state = checkpoint_filter_fn(
        {key: torch.from_numpy(tensor) for key, tensor in old.tensors.items()},
        theirs,
        interpolation=settings.interpolation,
        antialias=settings.antialias,
    )
    for key, tensor in state.items():
        np.testing.assert_allclose(base.tensors[key], tensor.numpy(), atol=1e-6, err_msg=key)  # the order of sums


def test_patches_are_resized_only_where_asked(tiny: Tiny, saved: Saved, changes: Changes) -> None:
    path = saved(tiny(NAME).tensors)
    base = load_base(model(path, image_size=32, patch_size=8), None, seed=0)
    assert changes(base.notes) == ["patch_embed: 16 pixel patches resized to 8"]
    assert base.tensors["patch_embed.proj.weight"].shape == (24, 3, 8, 8)
    with pytest.raises(UserError, match=r"of another shape: patch_embed\.proj\.weight \(24, 3, 16, 16\), not"):
        load_base(model(path, "vit_small_patch32_224.augreg_in21k", 128), 5, seed=0)


def test_blocks_are_left_out_only_where_asked(tiny: Tiny, saved: Saved, changes: Changes) -> None:
    path = saved(tiny("vit_tiny_patch16_224", depth=14).tensors)
    sizes = {"embed_dim": 24, "num_heads": 3}
    asked = Model(name="vit_tiny_patch16_224", weights=path, image_size=64, args=sizes | {"depth": 2})
    base = load_base(asked, None, seed=0)
    assert changes(base.notes) == ["blocks: those of the weights past the first 2 are left out"]
    assert base.tensors.keys() == shapes(base.architecture, 5).keys()
    with pytest.raises(UserError, match=r"left over: blocks\.\*\.attn\.proj\.bias \(2 blocks\)"):
        load_base(asked.model_copy(update={"args": sizes}), 5, seed=0)


def test_older_names_are_understood(tiny: Tiny, saved: Saved) -> None:
    old = tiny("deit3_small_patch16_224").tensors
    renamed = {name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): t for name, t in old.items()}
    renamed["patch_embed.proj.weight"] = renamed["patch_embed.proj.weight"].reshape(24, -1)
    base = load_base(model(saved(renamed), "deit3_small_patch16_224"), None, seed=0)
    for name, tensor in old.items():
        np.testing.assert_array_equal(base.tensors[name], tensor)


@pytest.mark.parametrize("name", [NAME, "deit_tiny_distilled_patch16_224"])
def test_a_representation_layer_goes_with_the_heads_behind_it(name: str, tiny: Tiny, saved: Saved) -> None:
    old = tiny(name)
    layer = {"pre_logits.fc.weight": np.ones((24, 24), np.float32), "pre_logits.fc.bias": np.ones(24, np.float32)}
    base = load_base(model(saved(old.tensors | layer), name), 5, seed=2)
    assert base.notes == (
        "pre_logits: the hidden layer before the head, and the head behind it, are left out",
        "head: a new one for 5 classes, the weights have none",
    )
    expected = old.tensors | initial_head(base.architecture, 5, seed=2)
    assert base.tensors.keys() == expected.keys()
    for key, tensor in expected.items():
        np.testing.assert_array_equal(base.tensors[key], tensor, err_msg=key)


def test_a_representation_layer_does_not_hide_which_model_it_is(tmp_path: Path) -> None:
    tensors = load_base(Model(name="deit_tiny_distilled_patch16_224", weights="none"), 5, seed=0).tensors
    layer = {"pre_logits.fc.weight": np.ones((8, 192), np.float32), "pre_logits.fc.bias": np.ones(8, np.float32)}
    save_file(dict(tensors) | layer | {"head.weight": np.ones((5, 8), np.float32)}, tmp_path / "a.safetensors")
    checkpoint = open_path(tmp_path / "a.safetensors", Asked())
    assert checkpoint.name == "deit_tiny_distilled_patch16_224"
    assert not any(is_head(name) for name in checkpoint.tensors or {})


@pytest.mark.parametrize(
    "name", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2", "vit_giant_patch14_dinov2"]
)
def test_dinov2s_own_names_are_understood_as_timm_does(name: str, tiny: Tiny, saved: Saved) -> None:
    old = dict(tiny(name, image_size=56).tensors)
    if "reg_token" in old:
        old["register_tokens"] = old.pop("reg_token")
        old["pos_embed"] = np.concatenate([old["cls_token"], old["pos_embed"]], 1)
    if name.startswith("vit_giant"):
        old = {key.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): tensor for key, tensor in old.items()}
    old["mask_token"] = np.zeros((1, 24), np.float32)
    base = load_base(model(saved(old), name, 56), None, seed=0)
    theirs = timm.create_model(name, img_size=56, num_classes=5, **SIZES)
    state = checkpoint_filter_fn({key: torch.from_numpy(tensor) for key, tensor in old.items()}, theirs)
    assert state.keys() == base.tensors.keys()
    for key, tensor in state.items():
        np.testing.assert_array_equal(base.tensors[key], tensor.numpy())


def test_attention_pooling_that_is_not_used_is_left_out(tiny: Tiny, saved: Saved, changes: Changes) -> None:
    pooled = tiny("vit_base_patch16_siglip_224").tensors
    gap = "vit_base_patch16_siglip_gap_224.webli"
    base = load_base(model(saved(pooled), gap, fc_norm=False, final_norm=True), None, seed=0)
    assert changes(base.notes) == ["attn_pool: the weights' attention pooling is left out, global_pool is avg"]


def test_whatever_else_does_not_fit_is_listed(tiny: Tiny, saved: Saved) -> None:
    tensors = dict(tiny(NAME).tensors)
    tensors["blocks.0.attn.qkw.weight"] = tensors.pop("blocks.0.attn.qkv.weight")
    tensors["norm.bias"] = np.zeros(23, np.float32)
    with pytest.raises(UserError) as caught:
        load_base(model(path := saved(tensors)), 5, seed=0)
    assert str(caught.value) == (
        f"the weights of {path} and the model {NAME} do not fit together\n"
        "  missing: blocks.0.attn.qkv.weight\n"
        "  left over: blocks.0.attn.qkw.weight\n"
        "  of another shape: norm.bias (23,), not (24,)"
    )


def test_a_long_list_is_grouped_and_cut_short(saved: Saved) -> None:
    with pytest.raises(UserError) as caught:
        odd = {f"x{index:02}": np.zeros(1, np.float32) for index in range(40)}
        load_base(model(saved({"cls_token": np.zeros((1, 1, 24), np.float32), **odd})), 5, seed=0)
    missing, left_over = str(caught.value).splitlines()[1:]
    assert "blocks.*.norm1.weight (3 blocks)" in missing
    assert left_over.endswith("x10, x11 and 28 more")


def test_a_class_position_is_not_made_up(tiny: Tiny, saved: Saved) -> None:
    tensors = dict(tiny(NAME).tensors)
    tensors["pos_embed"] = tensors["pos_embed"][:, 1:]
    with pytest.raises(UserError, match=r"pos_embed \(1, 16, 24\), not \(1, 17, 24\)"):
        load_base(model(saved(tensors)), 5, seed=0)


def test_a_file_does_not_say_how_its_images_were_normalised(tiny: Tiny, saved: Saved) -> None:
    path = saved(tiny("vit_small_patch16_224").tensors)
    with pytest.raises(UserError, match=r"normalise their images in different ways.*add a tag .*dino"):
        load_base(model(path, "vit_small_patch16_224"), 5, seed=0)
    imagenet, half = (load_base(model(path, f"vit_small_patch16_224.{tag}"), 5, 0) for tag in ("dino", "augreg_in1k"))
    assert imagenet.preprocessing.mean == (0.485, 0.456, 0.406)
    assert half.preprocessing.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("weights", ["none", "file"])
def test_an_unknown_normalisation_is_not_guessed(weights: str, tiny: Tiny, saved: Saved) -> None:
    path = "none" if weights == "none" else saved(tiny("vit_base_patch16_224").tensors)
    with pytest.raises(UserError, match=r"normalised is unknown; name a folder .*config\.json"):
        load_base(model(path, "vit_giant_patch14_224"), 5, seed=0)


def test_what_cannot_be_found_is_said(tmp_path: object) -> None:
    for weights, message in {
        "tim": "neither a file nor a folder; did you mean 'timm'",
        "dinov2_vits14": "did you mean 'vit_small_patch14_dinov2",
        f"{tmp_path}/none.safetensors": "no such file",
        f"{tmp_path}": "config.json: no such file",
        "package:nothing": "there is no model 'nothing' in this package",
        __file__: r"of an unknown kind: weights are read from a safetensors, PyTorch or \.npz file",
    }.items():
        with pytest.raises(UserError, match=message):
            load_base(model(weights), 5, seed=0)
    with pytest.raises(UserError, match=r"model\.args\.img_size: write model\.image_size"):
        load_base(Model(name=NAME, weights="none", args={"img_size": 32}), 5, seed=0)


def test_pixels_that_reach_no_patch_are_noted_with_the_nearest_sizes(tiny: Tiny, saved: Saved) -> None:
    note = (
        "image size 60 is no multiple of the patch size 14: the last 4 rows and columns, 12.9 % of the pixels, reach "
        "no patch; 56 and 70 are the nearest multiples"
    )
    assert load_base(model("none", image_size=60, patch_size=14), 5, seed=0).notes == (note,)
    assert load_base(model("none", image_size=56, patch_size=14), 5, seed=0).notes == ()
    old = tiny(NAME, image_size=60)
    assert "image size 60 is no multiple of the patch size 16" in " ".join(old.notes)
    folder = saved(old.tensors)
    assert any(note.startswith("image size 60 is no") for note in load_base(model(folder, image_size=60), 5, 0).notes)


def test_a_size_that_the_weights_were_trained_at_needs_no_note() -> None:
    """SigLIP's 384 pixels are 27 patches of 14 and 6 pixels more."""
    name = "vit_so400m_patch14_siglip_384"
    architecture = find(name).architecture
    assert architecture.img_size % architecture.patch_size
    small = {"depth": 1, "embed_dim": 24, "num_heads": 3}
    assert load_base(Model(name=name, weights="none", args=small), 5, seed=0).notes == ()  # type: ignore[arg-type]
