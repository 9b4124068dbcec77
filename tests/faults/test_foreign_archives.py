"""Foreign archives of arrays, damaged and hostile, and foreign names with a letter wrong."""

from __future__ import annotations

import io
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from faults.foreign_checkpoints import BASE, Bomb, many, refused
from googles import googles
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.numpy import save

from convert.base import whole
from convert.layouts import mlx_vision, torchvision
from convert.layouts.layout import Asked
from convert.layouts.npz import read_npz
from convert.layouts.renaming import Pair
from convert.open import open_path
from mlx_peft.core.errors import UserError


def test_the_archive_that_is_damaged_here_is_whole(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **googles(BASE.tensors, 3))
    found = whole(open_path(tmp_path / "a.npz", Asked()))
    assert found.tensors.keys() == BASE.tensors.keys()
    for name, tensor in BASE.tensors.items():
        np.testing.assert_array_equal(found.tensors[name], tensor)


def array(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + data


def archive(path: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as opened:
        for name, content in entries.items():
            opened.writestr(name, content)
    return path


PLAIN = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "an archive without arrays"),
        ({"cls.npy": b""}, r"not a whole \.npz archive"),
        ({"cls.npy": b"no array at all"}, r"not a whole \.npz archive"),
        ({"cls.npy": array(PLAIN % f"{2**40},")}, r"cls claims the shape \(1099511627776,\) in 128 bytes"),
        ({"cls.npy": array(PLAIN % f"{2**62}, 8")}, r"cls claims the shape"),
        ({"cls.npy": array(PLAIN % "-1,", bytes(4))}, r"not a whole \.npz archive|claims the shape"),
        ({"cls.npy": array("{'descr': '<f4'}")}, r"not a whole \.npz archive"),
        ({"cls.npy": array(PLAIN % "1," + "(", bytes(4))}, r"not a whole \.npz archive"),
        ({"cls.npy": array("__import__('os').system('touch run')")}, r"not a whole \.npz archive"),
        ({"cls.npy": array(PLAIN % "1,", bytes(4), b"\x09\x00")}, "an array in format"),
        ({"cls.npy": array(PLAIN.replace("<f4", "<i4") % "1,", bytes(4))}, r"not of a float type: cls \(int32\)"),
        ({"cls.npy": array(PLAIN.replace("<f4", "|O") % "1,", bytes(8))}, "cls holds Python objects, which are never"),
        ({"cls.npy": array(PLAIN % "1,", struct.pack("<f", np.nan))}, "NaN or infinite values in cls"),
        (
            {"cls.npy": array(PLAIN % "1,", bytes(4))},
            "not a ViT of timm, torchvision, mlx-image, transformers or Google",
        ),
        ({"../../cls.npy": array(PLAIN % "1,", bytes(4))}, "not a ViT of"),
    ],
)
def test_a_hostile_archive_is_refused_by_name(entries: dict[str, bytes], message: str, tmp_path: Path) -> None:
    found = refused(archive(tmp_path / "a.npz", entries))
    assert re.search(message, found) and "a.npz" in found, found


def test_an_array_of_objects_is_not_unpickled(tmp_path: Path) -> None:
    trace = tmp_path / "was-run"
    np.savez(tmp_path / "a.npz", cls=np.array([Bomb(trace)], dtype=object))
    assert "cls holds Python objects, which are never loaded" in refused(tmp_path / "a.npz")
    assert not trace.exists()


def test_a_bomb_is_refused_unread(tmp_path: Path) -> None:
    content = array(PLAIN % f"{2**24},", bytes(2**26))
    path = archive(tmp_path / "a.npz", {"cls.npy": content}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**17
    assert "claims to hold 67,108,992" in refused(path)


@many
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_archive_is_refused(share: float, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **googles(BASE.tensors, 3))
    left = buffer.getvalue()[: int(share * buffer.tell())]
    (tmp_path / "a.npz").write_bytes(left)
    assert (f"a.npz{': not a whole .npz archive' if left else ' is an empty file'}") in refused(tmp_path / "a.npz")


@many
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_seen_as_a_value(position: float, bit: int, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **googles(BASE.tensors, 3))
    content = bytearray(buffer.getvalue())
    content[int(position * len(content))] ^= 1 << bit
    (tmp_path / "a.npz").write_bytes(content)
    try:
        found = read_npz(tmp_path / "a.npz")
    except UserError as error:
        assert "a.npz" in str(error)
    else:  # in what the archive's checksums do not cover
        for name, tensor in googles(BASE.tensors, 3).items():
            assert np.array_equal(found.get(name, tensor), tensor)


def renamed(pairs: list[Pair], tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    from convert.layouts.renaming import from_timm

    return from_timm(tensors, pairs)


def torchvisions(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return renamed(torchvision.PAIRS, tensors)


def mlx_images(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = renamed(mlx_vision.PAIRS, tensors)
    return found | {"conv_proj.weight": found["conv_proj.weight"].transpose(0, 2, 3, 1)}


@pytest.mark.parametrize(
    "layout", [torchvisions, mlx_images, lambda tensors: googles(BASE.tensors, 3)], ids=["tv", "mlx", "npz"]
)
@many
@given(data=st.data())
def test_a_foreign_key_off_by_one_letter_is_named(
    layout: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]], data: st.DataObject, tmp_path: Path
) -> None:
    tensors = layout(BASE.tensors)
    name = data.draw(st.sampled_from(sorted(tensors)))
    place = data.draw(st.integers(0, len(name) - 1))
    wrong = name[:place] + data.draw(st.sampled_from("abcxyz01_")) + name[place + 1 :]
    assume(wrong not in tensors and not name.startswith("head"))
    tensors = {wrong if key == name else key: np.ascontiguousarray(tensor) for key, tensor in tensors.items()}
    suffix = ".npz" if "cls" in tensors or "embedding/bias" in tensors else ".safetensors"
    path = tmp_path / f"a{suffix}"
    if suffix == ".npz":
        np.savez(path, **tensors)
    else:
        path.write_bytes(save(tensors))
    found = refused(path, model="vit_b_32", args={"num_heads": 3})
    assert wrong in found or name in found or "depth" in found or "are missing" in found, found
