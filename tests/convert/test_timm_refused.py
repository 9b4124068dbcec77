"""Folders in timm's layout that claim too much, contradict themselves or are damaged."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from by_hand import by_hand
from safetensors.numpy import save_file

from convert.base import Base, load_base, whole
from convert.files import MAX_JSON, read_json
from convert.layouts.layout import Asked
from convert.open import open_path
from convert.timm.write import write_model
from mlx_peft.artifacts.inspect import inspect
from mlx_peft.artifacts.load import load_model
from mlx_peft.config.schema import Model
from mlx_peft.core.errors import UserError

Tiny = Callable[..., Base]


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


def test_names_of_classes_are_as_many_as_the_head_has_rows(tiny: Tiny, tmp_path: Path) -> None:
    base = tiny("deit_tiny_patch16_224")
    write_model(tmp_path / "m", base=base, tensors=base.tensors, classes=("cat", "dog", "emu", "fox"))
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
