"""Models out in timm's hub layout, and back in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from convert.base import Base, load_base
from convert.canonical import canonical
from convert.fit import LARGEST_GRID
from convert.layouts.recognise import recognise
from convert.layouts.transformers_names import as_on_disk
from convert.timm.config import quantization_of
from convert.timm.write import write_model
from mlx_peft.config.schema import Model
from mlx_peft.core.errors import UserError
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.registry import find, names

Tiny = Callable[..., Base]
Changes = Callable[[tuple[str, ...]], list[str]]

CLASSES = ("cat", "dog", "emu", "fox", "gnu")
VARIANTS: list[tuple[str, dict[str, object]]] = [
    ("deit_tiny_distilled_patch16_224", {}),
    ("vit_small_patch16_224.dino", {"reg_tokens": 2, "init_values": 0.1, "qk_norm": True}),
    ("vit_base_patch16_siglip_224", {"act_layer": "gelu"}),
    ("vit_base_patch16_clip_224", {"patch_size": 8, "norm_eps": 1e-6, "fc_norm": True}),
    ("aimv2_large_patch14_224", {"qkv_bias": True}),
    ("vit_tiny_patch16_224", {"pos_embed": False, "no_embed_class": True, "norm_layer": "rmsnorm"}),
]


@pytest.mark.parametrize(("name", "args"), VARIANTS)
def test_timm_opens_the_folder_and_it_comes_back_as_it_was(
    name: str, args: dict[str, object], tiny: Tiny, tmp_path: Path, changes: Changes
) -> None:
    base = tiny(name, **args)
    write_model(tmp_path / "model", base=base, tensors=base.tensors, classes=CLASSES)

    model = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True)
    state = model.state_dict()
    assert state.keys() == base.tensors.keys()
    for key, tensor in base.tensors.items():
        np.testing.assert_array_equal(state[key].numpy(), tensor)
    assert model.pretrained_cfg["label_names"] == list(CLASSES)
    data = timm.data.resolve_data_config(model=model)
    recipe = base.preprocessing.model_dump(mode="json")
    assert {key: data[key] for key in recipe} == recipe
    assert data["input_size"] == [3, 64, 64]

    again = load_base(Model(name=name, weights=str(tmp_path / "model")), None, seed=0)
    assert again.architecture == base.architecture.model_copy(update={"fc_norm": again.architecture.fc_norm})
    assert again.architecture.norm_after_pool == base.architecture.norm_after_pool
    assert (again.name, again.preprocessing, changes(again.notes)) == (base.name, base.preprocessing, [])
    for key, tensor in base.tensors.items():
        np.testing.assert_array_equal(again.tensors[key], tensor)


def test_the_forward_pass_is_timms_of_the_same_arguments(tiny: Tiny, tmp_path: Path) -> None:
    base = tiny("vit_base_patch16_clip_224", norm_eps=1e-6)
    write_model(tmp_path / "model", base=base, tensors=base.tensors)
    model = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True)
    assert model.blocks[0].norm1.eps == 1e-6
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


def test_a_folder_that_timm_saved_is_read(tmp_path: Path) -> None:
    sizes = {"depth": 2, "embed_dim": 24, "num_heads": 3, "img_size": 64, "num_classes": 5}
    model = timm.create_model("deit_tiny_patch16_224", **sizes, act_layer="quick_gelu", drop_path_rate=0.1)
    timm.models.save_for_hf(
        model, str(tmp_path), model_args={**sizes, "act_layer": "quick_gelu"}, safe_serialization=True
    )
    base = load_base(Model(name="deit_tiny_patch16_224", weights=str(tmp_path)), None, seed=0)
    assert (base.architecture.depth, base.architecture.img_size, base.architecture.act_layer) == (2, 64, "quick_gelu")
    for key, tensor in model.state_dict().items():
        np.testing.assert_array_equal(base.tensors[key], tensor.numpy())


def test_the_same_model_gives_the_same_bytes(tiny: Tiny, tmp_path: Path) -> None:
    base = tiny("deit_tiny_patch16_224")
    for name, tensors in {"a": base.tensors, "b": dict(reversed(base.tensors.items()))}.items():
        write_model(tmp_path / name, base=base, tensors=tensors, classes=CLASSES)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_folder_with_files_in_it_is_left_alone(tiny: Tiny, tmp_path: Path) -> None:
    base = tiny("deit_tiny_patch16_224")
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        write_model(tmp_path, base=base, tensors=base.tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("deit_tiny_patch16_224", {"mlp_layer": "swiglu"}),
        ("deit_tiny_patch16_224", {"norm_eps": 1e-5}),
        ("deit_tiny_patch16_224", {"norm_layer": "rmsnorm", "norm_eps": 1e-5}),
        ("deit_tiny_patch16_224", {"post_norm": True}),
        ("vit_base_patch16_rpn_224", {"post_norm": False}),
    ],
)
def test_what_timm_cannot_be_told_is_refused(name: str, args: dict[str, object], tiny: Tiny, tmp_path: Path) -> None:
    base = tiny(name, **args)
    with pytest.raises(UserError, match=rf"cannot express .* another .*{sorted(args)[0]}"):
        write_model(tmp_path / "model", base=base, tensors=base.tensors)
    assert not (tmp_path / "model").exists()


def test_a_large_grid_is_resized_where_it_is_asked_for(tiny: Tiny, tmp_path: Path) -> None:
    base = tiny("deit_tiny_patch16_224", depth=1)
    write_model(tmp_path / "m", base=base, tensors=base.tensors)
    model = Model(name="deit_tiny_patch16_224", weights=str(tmp_path / "m"), image_size=129 * 16)
    assert load_base(model, 5, seed=0).tensors["pos_embed"].shape == (1, 1 + 129**2, 24)


def test_every_name_of_timms_is_within_the_bounds() -> None:
    for name in names():
        architecture = find(name).architecture
        assert architecture.grid_size <= LARGEST_GRID / 2, name
        assert Architecture.model_validate(architecture.model_dump()) == architecture


@pytest.mark.parametrize(
    ("rename", "names"),
    [
        (lambda t: recognise({"backbone.patch_embed.proj.weight": t, "backbone.norm.weight": t, "norm.weight": t},
                             Path("w")), ("backbone.norm.weight", "norm.weight")),
        (lambda t: canonical({"blocks.0.gamma_1": t, "blocks.0.ls1.gamma": t}, "vit"),
         ("blocks.0.gamma_1", "blocks.0.ls1.gamma")),
        (lambda t: canonical({"mask_token": t, "blocks.0.mlp.w3.bias": t, "blocks.0.mlp.fc2.bias": t}, "vit"),
         ("blocks.0.mlp.w3.bias", "blocks.0.mlp.fc2.bias")),
        (lambda t: as_on_disk({"layer.0.attention.q_proj.bias": t, "layer.0.attention.attention.query.bias": t}),
         ("layer.0.attention.q_proj.bias", "layer.0.attention.attention.query.bias")),
    ],
)  # fmt: skip
def test_two_tensors_that_would_get_one_name_are_refused(
    rename: Callable[[np.ndarray], object], names: tuple[str, str]
) -> None:
    with pytest.raises(UserError, match="are both called") as refused:
        rename(np.ones(4, np.float32))
    assert " and ".join(names) in str(refused.value)


@pytest.mark.parametrize("entry", [{"bits": 7, "group_size": 64}, {"bits": 4, "mode": "mxfp4"}, {"group_size": 64}, 4])
def test_codes_of_another_kind_are_refused_with_the_files_name(entry: object) -> None:
    with pytest.raises(UserError, match=r"config\.json: quantization: only MLX's affine mode"):
        quantization_of(entry, Path("config.json"))
