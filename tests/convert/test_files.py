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
from safetensors import safe_open
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file

from convert.files import DTYPES, listed, narrowed, read_json, read_safetensors, read_tensors, write_safetensors
from mlx_peft.core.errors import UserError
from mlx_peft.core.writing import new_folder

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=30)
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


@settings(max_examples=30)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=4),
        arrays(np.float32, array_shapes(min_dims=0), elements=FLOATS),
        max_size=4,
    ),
)
def test_the_bytes_are_those_that_the_library_writes_with_the_same_metadata(tensors: dict[str, np.ndarray]) -> None:
    words = {f"{name} words": tensor.view(np.uint32) for name, tensor in tensors.items() if tensor.ndim}
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder, "ours.safetensors"), Path(folder, "theirs.safetensors")
        write_safetensors(ours, tensors | words)
        with safe_open(ours, "np") as file:  # one entry, the digest: of several the library has no fixed order
            save_numpy(tensors | words, theirs, file.metadata())
        assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_fewer_bits_are_rounded_as_torch_rounds_them(dtype: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(0, 1, 10_000).astype(np.float32) * np.float32(2.0) ** np.arange(
        -24, 1, 0.0025
    )
    tensor = np.concatenate([values.astype(np.float32), np.float32([0, -0.0, 1e-45, 65_504, 1 + 2**-8, 1 + 3 * 2**-8])])
    write_safetensors(tmp_path / "a.safetensors", {"a": tensor}, dtype=dtype)
    expected = torch.from_numpy(tensor).to(getattr(torch, dtype)).float().numpy()
    for found in (read_tensors(tmp_path / "a.safetensors")["a"], narrowed("a", tensor, dtype)):
        assert found.tobytes() == expected.tobytes()


def test_what_float16_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"big has values above 65,504, which do not fit float16; bfloat16"):
        write_safetensors(tmp_path / "a.safetensors", {"big": np.float32([1e5])}, dtype="float16")


def test_what_bfloat16_would_round_to_infinity_is_refused(tmp_path: Path) -> None:
    largest = np.float32(3.3895314e38)  # that bfloat16 has
    write_safetensors(tmp_path / "a.safetensors", {"big": np.float32([largest, -largest])}, dtype="bfloat16")
    assert read_tensors(tmp_path / "a.safetensors")["big"].tolist() == [largest, -largest]
    with pytest.raises(UserError, match=r"big has values above 3\.39e38, which do not fit bfloat16"):
        write_safetensors(tmp_path / "a.safetensors", {"big": np.finfo(np.float32).max * np.ones(1)}, dtype="bfloat16")


def test_what_was_read_may_be_written_to_and_the_file_stays(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", {"a": np.ones(3, np.float32)})
    read_tensors(tmp_path / "a.safetensors")["a"][:] = 2
    np.testing.assert_array_equal(read_tensors(tmp_path / "a.safetensors")["a"], 1)


def test_counters_are_passed_over(tmp_path: Path) -> None:
    tensors = {"embeddings.position_ids": torch.arange(3), "a": torch.ones(1)}
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save(tensors, tmp_path / "a.pth")
    for name in ("a.safetensors", "a.pth"):
        assert read_tensors(tmp_path / name).keys() == {"a"}


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
    tensors = {"good": np.ones(2, np.float32), "bad": np.float32([0, value])}
    save_numpy(tensors, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"a\.safetensors has NaN or infinite values in bad"):
        read_tensors(tmp_path / "a.safetensors")
    for dtype in DTYPES:
        with pytest.raises(UserError, match=r"^bad has NaN or infinite values"):
            write_safetensors(tmp_path / "b.safetensors", tensors, dtype=dtype)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "not readable as JSON"), ("[1]", "should hold a JSON object, not list")]
)
def test_broken_json_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_json(tmp_path / "a.json")


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with pytest.raises(ZeroDivisionError), new_folder(target) as new:
        (new / "half").write_text("half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == [], "the folders around it that were made for it are gone with it"
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
