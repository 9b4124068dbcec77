"""Damaged, truncated, hostile and mislabelled checkpoints: each refused by name, nothing run, nothing left behind."""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import by_hand
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from convert.adapters.peft import Adapter, read_adapter, write_adapter
from convert.base import load_base
from convert.files import read_safetensors, read_tensors
from mlx_peft.config.methods import LoRA
from mlx_peft.config.schema import Model
from mlx_peft.core.errors import UserError

SIZES = {"depth": 1, "embed_dim": 12, "num_heads": 3}
NAME = "deit_tiny_patch16_224"
TENSORS = load_base(Model(name=NAME, weights="none", image_size=32, args=SIZES), 2, seed=0).tensors  # type: ignore[arg-type]
WHOLE = save(TENSORS)
HEADER = 8 + struct.unpack("<Q", WHOLE[:8])[0]

many = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def loaded(path: Path) -> dict[str, np.ndarray]:
    return load_base(Model(name=NAME, weights=str(path), image_size=32, args=SIZES), 2, seed=0).tensors  # type: ignore[arg-type]


def safetensors(header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content",
    {
        "empty": b"",
        "a header of 2^60 bytes": safetensors({}, length=2**60),
        "a header of 2^64 - 1 bytes": safetensors({}, length=2**64 - 1),
        "no JSON": safetensors(b"{{{{"),
        "a list": safetensors(b"[]"),
        "deep": safetensors(b'{"a":' + b"[" * 10_000),
        "overlapping": safetensors({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
        "out of range": safetensors({"a": entry([4], 0, 16)}, bytes(8)),
        "negative": safetensors({"a": entry([1], -4, 0)}, bytes(4)),
        "a hole": safetensors({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12)),
        "more at the end": safetensors({"a": entry([1], 0, 4)}, bytes(5)),
        "another size than its shape": safetensors({"a": entry([3], 0, 8)}, bytes(8)),
        "a shape of 2^62 by 4": safetensors({"a": entry([2**62, 4], 0, 0)}),
        "an unknown type": safetensors({"a": entry([1], 0, 4, "Q32")}, bytes(4)),
        "whole numbers": safetensors({"a": entry([1], 0, 4, "I32")}, bytes(4)),
        "eight bits": safetensors({"a": entry([4], 0, 4, "F8_E4M3")}, bytes(4)),
        "a zip archive": b"PK\x03\x04" + bytes(100),
        "a pickle": pickle.dumps({"a": 1}),
    }.items(),
    ids=lambda item: item[0],
)
def test_a_hostile_safetensors_file_is_refused_by_name(content: tuple[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content[1])
    with pytest.raises(
        UserError,
        match=r"weights\.safetensors(: not a whole safetensors file| is an empty file|: these tensors| is a pickle)",
    ):
        read_safetensors(path)


@many
@given(length=st.integers(0, len(WHOLE) - 1))
def test_a_truncated_file_is_refused(length: int, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(WHOLE[:length])
    with pytest.raises(UserError, match=r"weights\.safetensors(: not a whole safetensors file| is an empty file)"):
        loaded(path)


@many
@given(position=st.integers(0, HEADER - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_in_the_header_is_refused_or_harmless(position: int, bit: int, tmp_path: Path) -> None:
    damaged = bytearray(WHOLE)
    damaged[position] ^= 1 << bit
    path = tmp_path / "weights.safetensors"
    path.write_bytes(damaged)
    try:
        found = loaded(path)
    except UserError as error:
        assert "weights.safetensors" in str(error)
    else:  # an offset, a shape and a name cannot change unnoticed: only white space did
        assert all(np.array_equal(found[name], tensor) for name, tensor in TENSORS.items())


@many
@given(position=st.integers(HEADER, len(WHOLE) - 1), value=st.binary(min_size=4, max_size=4))
def test_damage_in_the_data_is_refused_or_finite(position: int, value: bytes, tmp_path: Path) -> None:
    damaged = bytearray(WHOLE)
    damaged[position : position + 4] = value
    path = tmp_path / "weights.safetensors"
    path.write_bytes(damaged[: len(WHOLE)])
    try:
        found = loaded(path)
    except UserError as error:
        assert "NaN or infinite values in" in str(error)
    else:
        assert all(np.isfinite(tensor).all() for tensor in found.values())


@many
@given(name=st.sampled_from(sorted(TENSORS)), position=st.integers(0, 200), letter=st.characters(codec="ascii"))
def test_a_key_off_by_one_letter_is_named(name: str, position: int, letter: str, tmp_path: Path) -> None:
    position %= len(name)
    wrong = name[:position] + letter + name[position + 1 :]
    assume(wrong not in TENSORS and not name.startswith("head"))
    assume(not re.match(r"blocks\.[1-9]", wrong))  # a block past the depth that is asked for, which is left out
    path = tmp_path / "weights.safetensors"
    path.write_bytes(save({wrong if key == name else key: tensor for key, tensor in TENSORS.items()}))
    with pytest.raises(UserError) as caught:
        loaded(path)
    missing = next(line for line in str(caught.value).splitlines() if line.startswith("  missing: "))
    assert name in missing
    assert f"left over: {wrong}" in str(caught.value)


class Bomb:
    """A pickle that would write a file when loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("kind", ["torch", "pickle", "legacy"])
def test_code_in_a_pickle_is_refused_and_not_run(kind: str, tmp_path: Path) -> None:
    path, trace = tmp_path / "weights.pth", tmp_path / "was-run"
    content = {"model": {"a": torch.ones(2), "b": Bomb(trace)}}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content["model"]["b"], protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "torch")
    with pytest.raises(
        UserError, match=r"weights\.pth is a pickle that holds the object posix\.system; .*nothing in it was run"
    ):
        read_tensors(path)
    assert not trace.exists()


def test_a_compressed_archive_is_refused_unread(tmp_path: Path) -> None:
    plain, bomb = tmp_path / "plain.pth", tmp_path / "bomb.pth"
    torch.save({"a": torch.zeros(1_000_000)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for item in source.namelist():
            target.writestr(item, source.read(item))
    assert bomb.stat().st_size < 20_000
    with pytest.raises(UserError, match=r"bomb\.pth is a compressed archive"):
        read_tensors(bomb)


@many
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_pth_is_refused(share: float, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({name: torch.from_numpy(tensor) for name, tensor in TENSORS.items()}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"weights\.pth(: not a whole PyTorch file| is an empty file)"):
        loaded(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "should hold a dictionary of tensors, not list"),
        ({}, "should hold a dictionary of tensors, and its dictionary is empty"),
        ({"a": torch.ones(1), "epoch": 3}, "not tensors: epoch"),
        ({"model": {"a": torch.arange(3)}}, "not of a float type: a"),
        ({"state_dict": {"a": torch.tensor([float("nan")])}}, "NaN or infinite values in a"),
    ],
)
def test_a_pth_of_something_else_is_refused(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=message):
        read_tensors(tmp_path / "weights.pth")


def test_containers_are_unwrapped_and_their_other_contents_left_alone(tmp_path: Path) -> None:
    state = {name: torch.from_numpy(tensor) for name, tensor in TENSORS.items()}
    for content in (state, {"model": state, "epoch": 3}, {"state_dict": state}, {"model": {"state_dict": state}}):
        torch.save(content, tmp_path / "weights.pth")
        found = loaded(tmp_path / "weights.pth")
        assert all(np.array_equal(found[name], tensor) for name, tensor in TENSORS.items())


ADAPTER = Adapter(
    method=LoRA(rank=2, targets=("q", "v", "proj")),
    tensors={
        "blocks.0.attn.qkv.lora_A": np.ones((4, 12), np.float32),
        "blocks.0.attn.qkv.lora_B": np.ones((8, 2), np.float32),
        "blocks.0.attn.proj.lora_A": np.ones((2, 12), np.float32),
        "blocks.0.attn.proj.lora_B": np.ones((12, 2), np.float32),
        "head.weight": np.ones((2, 12), np.float32),
        "head.bias": np.ones(2, np.float32),
    },
    classes=("a", "b"),
    model=None,
    architecture=None,
    preprocessing=None,
    base_sha256=None,
    source="random",
)


@many
@given(file=st.sampled_from(["adapter_config.json", "adapter_model.safetensors"]), data=st.data())
def test_a_damaged_adapter_is_refused_by_name_or_reads_as_an_adapter(
    file: str, data: st.DataObject, tmp_path: Path
) -> None:
    write_adapter(tmp_path / "adapter", ADAPTER)
    path = tmp_path / "adapter" / file
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        assert isinstance(read_adapter(tmp_path / "adapter"), Adapter)
    except UserError as error:
        assert str(tmp_path / "adapter") in str(error)


KEYS = st.sampled_from(["peft_type", "r", "lora_alpha", "alpha_pattern", "use_rslora"])
VALUES = st.none() | st.integers() | st.text(max_size=3)


@pytest.mark.parametrize("examples", [15, pytest.param(300, marks=pytest.mark.slow)])
def test_a_foreign_configuration_is_understood_or_refused(examples: int, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    write_adapter(folder, ADAPTER)
    tensors, _ = read_safetensors(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").write_bytes(save(tensors))

    @settings(max_examples=examples)
    @given(config=st.dictionaries(KEYS, VALUES | st.dictionaries(st.text(max_size=3), VALUES, max_size=2)))
    def must_be_understood_or_refused(config: dict[str, Any]) -> None:
        by_hand(folder / "adapter_config.json", json.dumps({"peft_type": "LORA", "lora_alpha": 4} | config))
        try:
            assert read_adapter(folder).method.name == "lora"
        except UserError as error:
            assert str(folder) in str(error)

    must_be_understood_or_refused()


def test_a_pickled_adapter_is_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", ADAPTER)
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter_model\.bin is a pickle"):
        read_adapter(tmp_path / "adapter")
