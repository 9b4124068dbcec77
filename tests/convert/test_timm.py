"""Models out in timm's hub layout, and back in."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from by_hand import by_hand
from safetensors.numpy import save_file

from convert.base import Base, load_base, whole
from convert.canonical import canonical
from convert.files import MAX_JSON, read_json
from convert.fit import LARGEST_GRID
from convert.layouts.layout import Asked
from convert.layouts.recognise import recognise
from convert.layouts.transformers_names import as_on_disk
from convert.open import open_path
from convert.timm.write import write_model
from mlx_peft.artifacts.inspect import inspect
from mlx_peft.artifacts.load import load_model
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

    again = load_base(Model(name=name, weights=str(tmp_path / "model")), 5, seed=0)
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
    base = load_base(Model(name="deit_tiny_patch16_224", weights=str(tmp_path)), 5, seed=0)
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
    "args", [{"mlp_layer": "swiglu"}, {"norm_eps": 1e-5}, {"norm_layer": "rmsnorm", "norm_eps": 1e-5}]
)
def test_what_timm_cannot_be_told_is_refused(args: dict[str, object], tiny: Tiny, tmp_path: Path) -> None:
    base = tiny("deit_tiny_patch16_224", **args)
    with pytest.raises(UserError, match=rf"cannot express .* another .*{sorted(args)[0]}"):
        write_model(tmp_path / "model", base=base, tensors=base.tensors)
    assert not (tmp_path / "model").exists()


def edited(folder: Path, **changes: object) -> Model:
    path = folder / "config.json"
    by_hand(path, json.dumps(json.loads(path.read_text()) | changes))
    return Model(name="deit_tiny_patch16_224", weights=str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "vit_tiny_patch16_224"}, "is of a 'vit_tiny_patch16_224'"),
        ({"architecture": None}, "names no architecture"),
        ({"model_args": {"dept": 2}}, r"model_args\.dept: no such field of a ViT; did you mean 'depth'"),
        ({"pretrained_cfg": {"input_size": [3, 64, 32]}}, r"input_size: only squares .*\[3, 64, 32\]"),
        ({"model_args": {"in_chans": 1}}, "only images of three channels"),
        ({"model_args": {"img_size": [64, 32]}}, "only squares"),
        ({"pretrained_cfg": {"std": [1, 1, 1]}}, "pretrained_cfg lacks mean"),
        ({"pretrained_cfg": {"mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "lanczos"}}, "interpolation"),
    ],
)
def test_a_configuration_that_is_not_understood_is_refused(
    changes: dict[str, object], message: str, tiny: Tiny, tmp_path: Path
) -> None:
    base = tiny("deit_tiny_patch16_224")
    write_model(tmp_path / "model", base=base, tensors=base.tensors)
    with pytest.raises(UserError, match=message):
        load_base(edited(tmp_path / "model", **changes), 5, seed=0)


CLAIMS: list[tuple[dict[str, Any], str]] = [
    ({"pretrained_cfg": {"input_size": [3, 2**20, 2**20]}}, "img_size: should be less than or equal to 4096"),
    ({"model_args": {"depth": 10**9}}, "depth: should be less than or equal to 512"),
    ({"model_args": {"embed_dim": 10**9}}, "embed_dim: should be less than or equal to 65536"),
    ({"model_args": {"num_heads": 10**9}}, "num_heads: should be less than or equal to 4096"),
    ({"model_args": {"reg_tokens": 10**9}}, "reg_tokens: should be less than or equal to 1024"),
    ({"model_args": {"mlp_ratio": 1e12}}, "mlp_ratio: should be less than or equal to 64"),
    ({"pretrained_cfg": {"input_size": [3, 4096, 4096]}}, "pos_embed is of 4 x 4 patches, and 256 x 256 are claimed"),
    ({"model_args": {"embed_dim": 65536, "num_heads": 1}}, "do not fit together"),
]


@pytest.mark.parametrize(("claim", "fault"), CLAIMS)
def test_what_a_configuration_claims_is_refused_before_it_is_allocated(
    claim: dict[str, Any], fault: str, tiny: Tiny, tmp_path: Path
) -> None:
    base = tiny("deit_tiny_patch16_224")
    write_model(tmp_path / "m", base=base, tensors=base.tensors)
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    by_hand(path, json.dumps({key: value | claim.get(key, {}) if isinstance(value, dict) else value
                                for key, value in config.items()}))  # fmt: skip
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as refused:
            load_base(Model(name="deit_tiny_patch16_224", weights=str(tmp_path / "m")), 1000, seed=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert fault in str(refused.value)
    assert peak < 2**25  # bytes: the model is a hundredth of it, and a head of the claimed width has eight times that


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


def plain(tensors: dict[str, np.ndarray]) -> None:
    """Nothing is damaged but what is said of it."""


def scalar(tensors: dict[str, np.ndarray]) -> None:
    tensors["head.weight"] = np.ones((), np.float32)


def stray(tensors: dict[str, np.ndarray]) -> None:
    tensors["stray"] = np.arange(4, dtype=np.uint32)


@pytest.mark.parametrize(
    ("entry", "damage", "fault"),
    [
        (None, scalar, "head.weight should have 2 dimensions, not the shape ()"),
        ({"bits": 4, "group_size": 32}, plain, "blocks.0.attn.qkv.weight has the shape (96, 32), not (96, 4)"),
        ({"bits": 4, "group_size": 32}, stray, "stray has the type uint32"),
    ],
)
def test_damaged_tensors_are_one_error_that_names_the_file_and_the_tensor(
    entry: dict[str, int] | None, damage: Callable[..., None], fault: str, tiny: Tiny, tmp_path: Path
) -> None:
    base = tiny("deit_tiny_patch16_224", embed_dim=32, num_heads=2, depth=1)
    tensors = dict(base.tensors)
    damage(tensors)
    write_model(tmp_path / "m", base=base, tensors=base.tensors)
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    path = tmp_path / "m" / "config.json"
    by_hand(path, json.dumps(json.loads(path.read_text()) | ({"quantization": entry} if entry else {})))
    with pytest.raises(UserError) as refused:
        whole(open_path(tmp_path / "m", Asked()))
    assert f"{tmp_path / 'm' / 'model.safetensors'}: " in str(refused.value)
    assert fault in str(refused.value)
    assert "undecided" in inspect(tmp_path / "m")


@pytest.mark.parametrize(
    ("rename", "names"),
    [
        (lambda t: recognise({"backbone.patch_embed.proj.weight": t, "backbone.norm.weight": t, "norm.weight": t},
                             Path("w")), ("backbone.norm.weight", "norm.weight")),
        (lambda t: canonical({"blocks.0.gamma_1": t, "blocks.0.ls1.gamma": t}),
         ("blocks.0.gamma_1", "blocks.0.ls1.gamma")),
        (lambda t: canonical({"mask_token": t, "blocks.0.mlp.w3.bias": t, "blocks.0.mlp.fc2.bias": t}),
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


def test_names_of_classes_are_as_many_as_the_head_has_rows(tiny: Tiny, tmp_path: Path) -> None:
    base = tiny("deit_tiny_patch16_224")
    write_model(tmp_path / "m", base=base, tensors=base.tensors, classes=CLASSES[:4])
    with pytest.raises(UserError, match="label_names: 4 names, and the head has 5 rows"):
        open_path(tmp_path / "m", Asked())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_names": ["a", "b", "c", "d", {}]}, "label_names: a name should be text, not {}"),
        ({"label_names": ["a", "b", "c", "d", "e" * 100_000]}, "label_names: a name has 100,000 characters"),
        ({"num_classes": 7}, "num_classes is 7, and the head has 5 rows"),
        ({"num_classes": 10**400}, "num_classes is 1000"),
        (
            {"pretrained_cfg": {"tag": "x" * 100_000}},
            "pretrained_cfg.tag: should be text of at most 200 characters, not 'xxx",
        ),
        ({"pretrained_cfg": {"tag": [1]}}, "pretrained_cfg.tag: should be text of at most 200 characters, not [1]"),
        ({"pretrained_cfg": {"input_size": [3] * 10_000}}, "only squares of three channels are supported, not [3, 3"),
        ({"pretrained_cfg": {"std": [0, 1, 1]}}, "std[0]: should be greater than or equal to 0.000001, not 0"),
        ({"pretrained_cfg": {"mean": [float("nan"), 1, 1]}}, "mean[0]: should be"),
    ],
)
def test_what_a_configuration_says_of_its_head_is_what_the_head_is(
    change: dict[str, Any], message: str, tiny: Tiny, tmp_path: Path
) -> None:
    base = tiny("vit_tiny_patch16_224")
    write_model(tmp_path / "m", base=base, tensors=base.tensors)
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    inner = config["pretrained_cfg"] | change.get("pretrained_cfg", {})
    by_hand(path, json.dumps(config | change | {"pretrained_cfg": inner}))
    with pytest.raises(UserError) as refused:
        open_path(tmp_path / "m", Asked())
    assert message in str(refused.value)
    assert len(str(refused.value)) < 1000 and "pydantic" not in str(refused.value)


def test_a_head_of_one_row_answers_nothing(tiny: Tiny, tmp_path: Path) -> None:
    base = tiny("vit_tiny_patch16_224")
    one = {name: tensor[:1] if name.startswith("head") else tensor for name, tensor in base.tensors.items()}
    write_model(tmp_path / "m", base=base, tensors=one)
    with pytest.raises(UserError, match=r"the head has 1 row, and an image has one class \(problem_type\)"):
        load_model(tmp_path / "m")


def test_json_is_not_read_without_end(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"{}")
    os.truncate(tmp_path / "config.json", MAX_JSON + 1)
    with pytest.raises(UserError, match=r"67,108,865 bytes, and at most 67,108,864 are read as JSON"):
        read_json(tmp_path / "config.json")
