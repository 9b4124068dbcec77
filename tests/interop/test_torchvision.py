"""torchvision's own class, and the weights of Google and mlx-image, against the model that their files become."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from comparing import LOGITS, relative
from foreign_models import SIZE, logits, pixels, prepared, shaken
from googles import googles
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file
from torchvision.models import VisionTransformer, get_model_weights

from convert.base import Base, load_base
from convert.layouts import npz
from convert.layouts import torchvision as layout
from convert.layouts.layout import Asked
from convert.open import open_path
from mlx_peft.config.schema import Model
from mlx_peft.core.errors import UserError
from mlx_peft.vit.architecture import Architecture

WIDTHS = {"embed_dim": 24, "depth": 2, "num_heads": 3, "patch_size": 8, "mlp_ratio": 2.0}


def tiny() -> torch.nn.Module:
    torch.manual_seed(0)
    return shaken(
        VisionTransformer(
            image_size=SIZE, patch_size=8, num_layers=2, num_heads=3, hidden_dim=24, mlp_dim=48, num_classes=5
        )
    )


def loaded(path: Path, name: str = "vit_base_patch16_224") -> Base:
    return load_base(Model(name=name, weights=str(path), args=WIDTHS), None, seed=0)


@pytest.fixture(autouse=True)
def some_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small models are none of torchvision's, whose recipes are known by shape."""
    monkeypatch.setitem(layout.SIZES, (24, 8), "vit_tiny")
    monkeypatch.setitem(layout.WEIGHTS, "vit_tiny", {"V1": layout.Weights(SIZE, 36, "bilinear")})


@pytest.mark.parametrize("old", [False, True])
def test_both_backends_give_the_logits_of_torchvisions_class(old: bool, tmp_path: Path) -> None:
    model = tiny()
    state = model.state_dict()
    if old:  # as the published files have them
        state = {k.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): t for k, t in state.items()}
    path = tmp_path / ("a.pth" if old else "a.safetensors")
    (torch.save if old else save_file)(state, path)
    base = loaded(path)
    assert base.architecture == Architecture(img_size=SIZE, **WIDTHS)
    images = pixels()
    with torch.no_grad():
        expected = model(prepared(images, base)).numpy()
    for backend in ("torch", "mlx"):
        assert relative(logits(base, backend, images), expected) <= LOGITS


def test_the_way_back_gives_the_same_tensors_bit_for_bit(tmp_path: Path) -> None:
    model = tiny()
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    base = loaded(tmp_path / "a.safetensors")
    back = layout.pack(base.architecture, base.tensors)
    state = model.state_dict()
    assert back.keys() == state.keys()
    for key, tensor in state.items():
        np.testing.assert_array_equal(back[key], tensor.numpy())
    fresh = VisionTransformer(
        image_size=SIZE, patch_size=8, num_layers=2, num_heads=3, hidden_dim=24, mlp_dim=48, num_classes=5
    )
    fresh.load_state_dict({key: torch.from_numpy(tensor.copy()) for key, tensor in back.items()})


def test_what_torchvisions_class_is_not_is_refused_by_its_fields() -> None:
    architecture = Architecture(qk_norm=True, norm_eps=1e-5, global_pool="avg", init_values=1e-5)
    with pytest.raises(
        UserError, match=r"has no qk_norm: True, init_values: 1e-05, .*global_pool: avg.*norm_eps: 1e-05"
    ):
        layout.pack(architecture, {})


def test_every_published_recipe_is_torchvisions_own() -> None:
    known = [name for name in torchvision.models.list_models(module=torchvision.models) if name.startswith("vit_")]
    assert sorted(known) == sorted(layout.WEIGHTS.keys() - {"vit_tiny"})
    for name in known:
        weights = get_model_weights(name)
        assert {entry.name for entry in weights} == layout.WEIGHTS[name].keys()
        for entry in weights:
            transform, ours = entry.transforms(), layout.WEIGHTS[name][entry.name]
            recipe = ours.preprocessing
            assert ([ours.crop], [ours.resize]) == (transform.crop_size, transform.resize_size)
            assert recipe.interpolation == transform.interpolation.value
            assert (list(recipe.mean), list(recipe.std)) == (transform.mean, transform.std)
            assert int(ours.crop / recipe.crop_pct) == ours.resize


def test_weights_of_the_same_shapes_and_different_recipes_are_asked_about() -> None:
    base = Architecture()
    with pytest.raises(UserError, match=r"name the model vit_b_16\.IMAGENET1K_V1 or vit_b_16\.IMAGENET1K_SWAG_LI"):
        layout._preprocessing(base, None, Path("a.pth"))
    assert layout._preprocessing(base, "vit_b_16.IMAGENET1K_SWAG_LINEAR_V1", Path("a.pth")).crop_pct == 1
    assert layout._preprocessing(base.model_copy(update={"img_size": 384}), None, Path("a")).interpolation == "bicubic"
    with pytest.raises(UserError, match=r"no weights 'IMAGENET1K_V2' in torchvision; did you mean 'IMAGENET1K_V1'"):
        layout._preprocessing(base, "vit_b_16.IMAGENET1K_V2", Path("a.pth"))


def test_heads_that_no_shape_says_are_asked_for(tmp_path: Path) -> None:
    save_file(tiny().state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"how many attention heads a model of width 24 has .*: give num_heads"):
        open_path(tmp_path / "a.safetensors", Asked())


def arrays(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {key: tensor.detach().numpy() for key, tensor in model.state_dict().items()}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_googles_archive_is_the_model_that_timm_reads_from_it(save: object, tmp_path: Path) -> None:
    sizes = {"img_size": SIZE, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 2}
    torch.manual_seed(0)
    source = shaken(timm.models.VisionTransformer(**sizes, num_classes=5))
    save(tmp_path / "a.npz", **googles(arrays(source), 3))
    theirs = timm.models.VisionTransformer(**sizes, num_classes=5).eval()
    theirs.load_pretrained(str(tmp_path / "a.npz"))

    checkpoint = open_path(tmp_path / "a.npz", Asked())
    assert (checkpoint.layout, checkpoint.architecture.num_heads) == ("npz", 3)
    base = loaded(tmp_path / "a.npz")
    for key, tensor in theirs.state_dict().items():
        np.testing.assert_array_equal(base.tensors[key], tensor.numpy(), err_msg=key)
    images = pixels()
    with torch.no_grad():
        expected = theirs(prepared(images, base)).numpy()
    for backend in ("torch", "mlx"):
        assert relative(logits(base, backend, images), expected) <= LOGITS


def test_a_representation_layer_goes_with_its_head(tmp_path: Path) -> None:
    sizes = {"img_size": SIZE, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 2}
    given = googles(arrays(timm.models.VisionTransformer(**sizes, num_classes=5)), 3)
    np.savez(tmp_path / "a.npz", **given, **{"pre_logits/kernel": np.ones((24, 24)), "pre_logits/bias": np.ones(24)})
    checkpoint = open_path(tmp_path / "a.npz", Asked())
    assert "head.weight" not in checkpoint.tensors
    assert any("pre_logits" in note for note in checkpoint.notes)
    assert checkpoint.preprocessing == npz.PREPROCESSING


def test_mlx_images_names_are_torchvisions_model(tmp_path: Path) -> None:
    model = tiny()
    state = {}
    for key, tensor in model.state_dict().items():
        value = tensor.numpy()
        key = key.replace("encoder_layer_", "").replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2")
        key = key.replace("heads.head", "heads.layers.0")
        if "in_proj_" in key:
            for part, rows in zip(("query", "key", "value"), np.split(value, 3), strict=True):
                state[key.replace("in_proj_", f"{part}_proj.")] = rows
        else:
            state[key] = np.ascontiguousarray(value.transpose(0, 2, 3, 1)) if key == "conv_proj.weight" else value
    save_numpy(state, tmp_path / "model.safetensors")
    base = loaded(tmp_path)
    plain = replace(base, preprocessing=layout.WEIGHTS["vit_tiny"]["V1"].preprocessing)
    images = pixels()
    with torch.no_grad():
        expected = model(prepared(images, plain)).numpy()
    for backend in ("torch", "mlx"):
        assert relative(logits(plain, backend, images), expected) <= LOGITS
    assert (base.preprocessing.crop_pct, base.preprocessing.interpolation) == (1.0, "bicubic")
