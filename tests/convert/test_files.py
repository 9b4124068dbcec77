"""Tensors of every width in, and folders that are whole or not there."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors.torch import save_file

from convert.files import listed, new_folder, read_json, read_safetensors, read_tensors, write_safetensors
from mlx_peft.config.errors import UserError

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text("abc.01_", min_size=1), arrays(np.float32, array_shapes(), elements=FLOATS), max_size=4))
def test_written_tensors_are_read_bit_for_bit(tensors: dict[str, np.ndarray]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tensors.safetensors")
        write_safetensors(path, tensors, {"about": "them"})
        found, metadata = read_safetensors(path)
    assert metadata == {"about": "them"}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].tobytes() == tensor.tobytes() and found[name].shape == tensor.shape


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_float_width_is_widened_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {"a": torch.randn(3, 5), "b": torch.randn(7), "s": torch.tensor(-0.0), "z": torch.zeros(0, 2)}
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()} | {"other": torch.ones(2)}
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save({"model": tensors}, tmp_path / "a.pth")
    for path in (tmp_path / "a.safetensors", tmp_path / "a.pth"):
        found = read_tensors(path)
        for name, tensor in tensors.items():
            assert found[name].dtype == np.float32
            np.testing.assert_array_equal(found[name], tensor.float().numpy())


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    save_file({"ids": torch.arange(3)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"not of a float type: ids \(I64\)"):
        read_tensors(tmp_path / "a.safetensors")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_by_name(value: float, tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", {"good": np.ones(2), "bad": np.array([0, value])})
    with pytest.raises(UserError, match=r"a\.safetensors: NaN or infinite values in bad"):
        read_tensors(tmp_path / "a.safetensors")


@pytest.mark.parametrize(("text", "message"), [("{", "not readable as JSON"), ("[1]", "object was expected, not list")])
def test_broken_json_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_json(tmp_path / "a.json")


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with pytest.raises(ZeroDivisionError), new_folder(target) as new:
        (new / "half").write_text("half")
        raise ZeroDivisionError
    assert list((tmp_path / "deep").iterdir()) == []
    with new_folder(target) as new:
        (new / "whole").write_text("whole")
        assert not target.exists()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    assert (target / "whole").read_text() == "whole"


def test_weights_may_be_read_by_whom_other_files_may(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as new:
        write_safetensors(new / "a.safetensors", {"a": np.ones(1)})
        (new / "plain").touch()
    assert (tmp_path / "out" / "a.safetensors").stat().st_mode == (tmp_path / "out" / "plain").stat().st_mode


def test_only_what_may_be_replaced_is(tmp_path: Path) -> None:
    target = tmp_path / "out"
    for text in ("first", "second"):
        with new_folder(target, replaceable={"file"}) as new:
            (new / "file").write_text(text)
        assert (target / "file").read_text() == text
    (target / "other").write_text("mine")
    with pytest.raises(UserError, match="exists already"), new_folder(target, replaceable={"file"}) as new:
        (new / "file").write_text("third")
    assert (target / "file").read_text() == "second"
    with pytest.raises(UserError, match="exists already"), new_folder(target / "other"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"out: cannot be written: no space left"), new_folder(tmp_path / "out") as new:
        (new / "half").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_long_list_of_names_is_cut_short() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed(map(str, range(15)), limit=3) == "0, 1, 2 and 12 more"
