"""A safetensors file: arrays of any strides come back as they were, and what changed since is refused."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from convert import tensor_file
from convert.files import is_sealed, read_safetensors, write_safetensors
from mlx_peft.adaptation.factors import principal
from mlx_peft.core.errors import UserError

VALUES = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
VIEWS = {
    "of Fortran's order": np.asfortranarray(VALUES),
    "transposed": VALUES.T,
    "every other": VALUES[:, :, ::2],
    "reversed": VALUES[::-1],
    "repeated": np.broadcast_to(VALUES[0, 0], (3, 4)),
    "a scalar": VALUES[1, 2, 3].reshape(()),
    "empty": VALUES[:, :0],
}


def write(path: Path, tensors: dict[str, np.ndarray]) -> None:
    layout = {name: (tensor_file.OWN[tensor.dtype], tensor.shape) for name, tensor in tensors.items()}
    tensor_file.write(path, layout, tensors.__getitem__, {"about": "them"})


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16, np.int64, np.uint32, np.uint8, np.bool_])
def test_arrays_of_any_strides_and_type_come_back_element_for_element(kind: type, tmp_path: Path) -> None:
    tensors = {name: view.astype(kind, order="K") for name, view in VIEWS.items()}
    write(tmp_path / "a.safetensors", tensors)
    ours, theirs = tensor_file.open_file(tmp_path / "a.safetensors"), load_file(tmp_path / "a.safetensors")
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(ours.array(name), tensor, strict=True)
        np.testing.assert_array_equal(theirs[name], tensor, strict=True)


def test_weights_of_any_strides_are_read_as_they_were(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", VIEWS)
    for name, tensor in read_safetensors(tmp_path / "a.safetensors")[0].items():
        np.testing.assert_array_equal(tensor, VIEWS[name], strict=True)


def test_a_writer_that_scrambles_is_found_out_when_the_file_is_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_it_lies(tensor: np.ndarray) -> np.ndarray:
        return np.frombuffer(tensor.tobytes("A"), tensor.dtype)

    monkeypatch.setattr(tensor_file.np, "ascontiguousarray", as_it_lies)
    with pytest.raises(UserError, match=r"a\.safetensors: what is read again is not what was written"):
        write(tmp_path / "a.safetensors", {"a": np.asfortranarray(np.eye(2, 3, dtype=np.float32))})


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (5, 5)])
def test_principal_factors_lie_in_c_order_whatever_the_weight(shape: tuple[int, int]) -> None:
    for factor in principal(np.random.default_rng(0).normal(size=shape).astype(np.float32), 2, 1.0):
        assert factor.flags.c_contiguous and factor.dtype == np.float32


def test_the_digest_is_that_of_the_file_with_zeros_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write(path, {"a": VALUES})
    with safe_open(path, "np") as file:
        digest = file.metadata()["digest"].removeprefix("sha256:")
    blank = path.read_bytes().replace(digest.encode(), b"0" * 64)
    assert hashlib.sha256(blank).hexdigest() == digest


def test_any_part_of_a_small_file_is_covered(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write(path, {"a": np.ones(2, np.float32)})
    whole = path.read_bytes()
    for place in range(0, 8 * len(whole), 7):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=re.escape(str(path))):
            tensor_file.open_file(path)


def test_what_has_no_digest_is_read(tmp_path: Path) -> None:
    save_file({"a": VALUES}, tmp_path / "theirs.safetensors", {"format": "pt"})
    write(tmp_path / "ours.safetensors", {"a": VALUES})
    assert not is_sealed(tmp_path / "theirs.safetensors") and is_sealed(tmp_path / "ours.safetensors")
    assert read_safetensors(tmp_path / "theirs.safetensors")[1] == {"format": "pt"}


@pytest.mark.parametrize(
    "metadata", [{"digest": "4711"}, {"hash": "sha256:" + 64 * "a"}, {"source_digest": "sha256:" + 64 * "a"}]
)
def test_what_others_call_a_digest_or_a_hash_is_none_of_ours(metadata: dict[str, str], tmp_path: Path) -> None:
    save_file({"a": VALUES}, tmp_path / "theirs.safetensors", metadata)
    assert not is_sealed(tmp_path / "theirs.safetensors")
    assert read_safetensors(tmp_path / "theirs.safetensors")[1] == metadata


def test_equal_tensors_give_equal_bytes(tmp_path: Path) -> None:
    for name, tensors in (("a", {"x": VALUES, "y": VALUES.T}), ("b", {"y": VALUES.T.copy(), "x": VALUES.copy("F")})):
        write(tmp_path / name, tensors)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
