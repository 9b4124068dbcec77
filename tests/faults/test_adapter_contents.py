"""Adapters and models whose parts contradict each other, or are of another form: each is refused by what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from by_hand import by_hand
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from convert.adapters.description import METADATA
from convert.adapters.formats import FORMATS
from convert.adapters.peft import Adapter, read_adapter, write_adapter
from convert.base import load_base
from convert.files import read_json, read_safetensors, read_tensors
from convert.layouts.layout import Asked
from convert.open import open_path
from convert.timm.write import write_model
from mlx_peft.artifacts.load import load_model, load_run
from mlx_peft.cli.app import app
from mlx_peft.config.methods import LoRA
from mlx_peft.config.schema import Model
from mlx_peft.core.errors import UserError
from mlx_peft.core.json_io import _without_repeats, from_json

ARGS: dict[str, Any] = {"depth": 1, "embed_dim": 24, "num_heads": 3, "patch_size": 8}
MODEL = Model(name="vit_tiny_patch16_224", weights="none", image_size=32, args=ARGS)
WEIGHTS = "adapter_model.safetensors"
HEAD = "base_model.model.head."


def written(folder: Path, classes: tuple[str, ...] = ("cat", "dog", "emu")) -> Path:
    base = load_base(MODEL, 3, seed=0)
    method = LoRA(rank=2, targets=("qkv",))
    tensors = {name: tensor for name, tensor in base.tensors.items() if name.startswith("head.")}
    for site in method.sites(base.architecture):
        tensors[f"{site.path}.lora_A"] = np.ones((2, site.inputs), np.float32)
        tensors[f"{site.path}.lora_B"] = np.ones((site.outputs, 2), np.float32)
    facts = (base.architecture, base.preprocessing, base.sha256, base.source)
    write_adapter(folder, Adapter(method, tensors, classes, MODEL, *facts))
    return folder


def changed(folder: Path, ours: bool = True, **tensors: np.ndarray | None) -> Path:
    """The adapter with other tensors, or without them; as PEFT would write it where it is not ``ours``."""
    stored = load_file(folder / WEIGHTS) | {name: tensor for name, tensor in tensors.items() if tensor is not None}
    stored = {name: tensor for name, tensor in stored.items() if tensors.get(name, tensor) is not None}
    facts = {METADATA: metadata(folder)} if ours else {}
    save_file(stored, folder / WEIGHTS, facts)
    return folder


def metadata(folder: Path) -> str:
    return read_safetensors(folder / WEIGHTS)[1][METADATA]


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize(
    ("weight", "bias", "said"),
    [
        (ones(), ones(3), r"head\.weight should have the shape \(classes, width\), not \(\)"),
        (ones(24), ones(3), r"head\.weight should have the shape \(classes, width\), not \(24,\)"),
        (ones(0, 24), ones(0), r"head\.weight should have the shape \(classes, width\), not \(0, 24\)"),
        (ones(3, 24), ones(), r"head\.bias has the shape \(\), and the head has 3 rows"),
        (ones(3, 24), ones(2), r"head\.bias has the shape \(2,\), and the head has 3 rows"),
        (None, ones(3), r"head\.bias has the shape \(3,\), and there is no head\.weight"),
    ],
)
def test_a_head_of_another_form_is_refused(
    weight: np.ndarray | None, bias: np.ndarray, said: str, ours: bool, tmp_path: Path
) -> None:
    folder = changed(written(tmp_path / "a"), ours, **{f"{HEAD}weight": weight, f"{HEAD}bias": bias})
    with pytest.raises(UserError, match=said):
        read_adapter(folder)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_so_are_other_names_than_the_heads_rows(count: int, tmp_path: Path) -> None:
    folder = written(tmp_path / "a", tuple(f"class {index}" for index in range(count)))
    with pytest.raises(UserError, match=f"its classes: {count} names?, and the head has 3 rows"):
        read_adapter(folder)
    for command in (["predict", folder, "x.png"], ["info", folder], ["merge", folder, tmp_path / "m"]):
        done = CliRunner().invoke(app, list(map(str, command)), obj="torch")
        assert done.exit_code == 2 and "name" in done.stderr and "and the head has 3 rows" in done.stderr


def test_a_name_that_no_class_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a name has 1,001 characters; at most 1,000 are read"):
        read_adapter(written(tmp_path / "a", ("x" * 1001, "b", "c")))


def test_one_row_is_a_classifier_of_several_labels_alone(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", ("cat",))
    changed(folder, **{f"{HEAD}weight": ones(1, 24), f"{HEAD}bias": ones(1)})
    with pytest.raises(UserError, match="the head has 1 row, and an image has one class"):
        load_run(folder, "torch")
    base = load_base(MODEL, 1, seed=0)
    write_model(tmp_path / "m", base=base, tensors=base.tensors, classes=["cat"])
    with pytest.raises(UserError, match="the head has 1 row, and an image has one class"):
        load_model(tmp_path / "m", "torch")
    described = json.loads(metadata(folder)) | {"problem_type": "multi_label_classification"}
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, {METADATA: json.dumps(described)})
    assert load_run(folder, "torch").classes == ("cat",)


SHAPES = [ones(), ones(2), ones(0, 0), ones(2, 0), ones(1, 2, 3), ones(0, 24)]


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("kind", ["lora_A", "lora_B"])
def test_factors_of_another_form_are_refused(kind: str, ours: bool, tmp_path: Path) -> None:
    folder = written(tmp_path / "a")
    for shape in SHAPES:
        changed(folder, ours, **{f"base_model.model.blocks.0.attn.qkv.{kind}.weight": shape})
        with pytest.raises(UserError):
            load_run(folder, "torch", model=None if ours else MODEL)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("peft_type", sorted(layout.peft_type for layout in FORMATS.values() if layout.from_peft))
@pytest.mark.parametrize("value", [None, "x", -1, 2**70, [], {}, [1], {"a": "b"}, True, 1e400])
def test_a_configuration_of_any_types_is_read_or_refused(peft_type: str, value: Any, tmp_path: Path) -> None:
    folder = changed(written(tmp_path / "a"), ours=False)
    config = json.loads((folder / "adapter_config.json").read_text()) | {"peft_type": peft_type}
    for key in (*config, "init_r", "target_r", "feedforward_modules", "projection_prng_key", "layers_to_transform"):
        by_hand(folder / "adapter_config.json", json.dumps(config | {key: value}))
        try:
            read_adapter(folder)
        except UserError as error:
            assert str(folder) in str(error)


def header(path: Path, text: str, data: bytes = bytes(4)) -> Path:
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + data)
    return path


ENTRY = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


@pytest.mark.parametrize(
    "text",
    [
        f'{{"a":{ENTRY},"a":{ENTRY}}}',
        f'{{"a":{ENTRY},"\\u0061":{ENTRY}}}',
        f'{{"__metadata__":{{"a":"1","a":"2"}},"a":{ENTRY}}}',
        f'{{"__metadata__":{{}},"__metadata__":{{}},"a":{ENTRY}}}',
    ],
)
def test_a_header_with_a_key_twice_is_refused(text: str, tmp_path: Path) -> None:
    path = header(tmp_path / "a.safetensors", text)
    with pytest.raises(UserError, match=r"a\.safetensors: not a whole safetensors file: .*(twice|duplicate)"):
        read_tensors(path)


def test_so_are_a_configuration_and_the_facts_of_an_adapter(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a": 1, "b": {"c": 1, "c": 2}}')
    with pytest.raises(UserError, match="the key 'c' is there twice"):
        read_json(tmp_path / "config.json")
    folder = written(tmp_path / "a")
    facts = metadata(folder)
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, {METADATA: facts[:-1] + ',"source":"x"}'})
    with pytest.raises(UserError, match="the key 'source' is there twice"):
        read_adapter(folder)
    assert from_json('{"a": {"b": 1}, "b": 1}') == {"a": {"b": 1}, "b": 1}


def test_a_million_keys_are_not_each_compared_with_all_others() -> None:
    compared = 0

    class Key(str):
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

    keys = [Key(at) for at in range(1000)]
    with pytest.raises(ValueError, match="'999' is there twice"):
        _without_repeats([*((key, 1) for key in keys), (Key(999), 2)])
    assert compared < 10 * len(keys)


def test_what_the_facts_lack_is_said_with_the_reason(tmp_path: Path) -> None:
    folder = written(tmp_path / "a")
    described = json.loads(metadata(folder))
    described["method"] |= {"rank_pattern": {"(": 3}}
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, {METADATA: json.dumps(described)})
    with pytest.raises(UserError, match=r"rank_pattern: .*'\(' is no regular expression that can be used here") as said:
        read_adapter(folder)
    assert "http" not in str(said.value)
    described["method"]["rank_pattern"], described["model"] = {}, []
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, {METADATA: json.dumps(described)})
    refused = r"\(model: should be a section of keys and values or null, not \[\]\); was it written"
    with pytest.raises(UserError, match=refused):
        read_adapter(folder)


def test_a_name_of_a_tensor_has_a_bounded_length(tmp_path: Path) -> None:
    name = "embeddings." * 50
    save_file({name: ones(1)}, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", **{name: ones(1)})
    for path in (tmp_path / "a.safetensors", tmp_path / "a.npz"):
        with pytest.raises(UserError, match="name has 550 characters"):
            open_path(path, Asked())
