"""Pickles of CIFAR: arrays and containers are made of them, and nothing else is done that they ask for."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from data.cifar_files import (
    TEN,
    as_archive,
    as_folder,
    check,
    opened,
    python3_pickle,
    python_files,
)

from mlx_peft.core.errors import UserError
from mlx_peft.data.pickles import unpickle


def test_pickles_written_again_by_python_3_are_read(tmp_path: Path) -> None:
    as_folder(tmp_path, TEN.versions[0], python_files(TEN, python3_pickle))
    check(opened(TEN, tmp_path, val=0), TEN)


class Trap:
    """Pickled, it is an order to create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    files = python_files(TEN)
    files["data_batch_3"] = pickle.dumps({"data": Trap(tmp_path / "trap"), "labels": [0]}, protocol=2)
    as_archive(tmp_path, TEN.versions[0], files)
    with pytest.raises(UserError, match=r"data_batch_3: not a pickle of arrays \(it asks for posix\.mkdir"):
        opened(TEN, tmp_path)
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize(
    "order",
    [
        b"cbuiltins\neval\n(Vprint(1)\ntR.",
        b"c__builtin__\ngetattr\n.",
        b"cnumpy\nload\n.",
        b"cnumpy.core.multiarray\nfromfile\n.",
        b"cnumpy.testing._private.utils\nruncommand\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.dump\x93.",
        b"cpickle\nloads\n.",
        b"",
        b"\x80\x02}",
    ],
)
def test_only_arrays_and_containers_are_unpickled(order: bytes) -> None:
    with pytest.raises(UserError, match="some file: not a pickle of arrays"):
        unpickle(order, "some file")


class Call:
    """Pickled, it is a call of a function with arguments, and perhaps a state to build of the result."""

    def __init__(self, function: object, arguments: tuple[object, ...], *state: object) -> None:
        self.parts = function, arguments, *state

    def __reduce__(self) -> tuple[object, ...]:
        return self.parts


EMPTY = np.empty(0).__reduce__()[0], (np.ndarray, (0,), b"b")
STRUCTURED = (3, "|", None, ("a",), {"a": (np.dtype("u1"), 0)}, 8, 1, 0)
FORGED = {
    "objects over raw bytes": Call(np.ndarray, ((1,), "O", b"A" * 8)),
    "ndarray as a function": Call(np.ndarray, ((4,), "u1")),
    "objects": Call(*EMPTY, (1, (1,), np.dtype("O"), False, [{}])),
    "a structured type": Call(*EMPTY, (1, (1,), np.dtype([("a", "u1")]), False, b"1")),
    "a type made structured": Call(*EMPTY, (1, (1,), Call(np.dtype, ("u8",), STRUCTURED), False, b"1" * 8)),
    "void": Call(*EMPTY, (1, (1,), np.dtype("V8"), False, b"A" * 8)),
    "times": Call(*EMPTY, (1, (1,), np.dtype("M8[s]"), False, b"A" * 8)),
    "a larger shape": Call(*EMPTY, (1, (2**40,), np.dtype("u1"), False, b"A" * 8)),
    "a shape below nothing": Call(*EMPTY, (1, (-1, -8), np.dtype("u1"), False, b"A" * 8)),
    "room made beforehand": Call(EMPTY[0], (np.ndarray, (9,), b"b")),
    "an array without content": Call(*EMPTY),
    "a type alone": np.dtype("u1"),
    "a function alone": np.ndarray,
    "a set": {1, 2},
}


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED)
def test_nothing_of_numpys_is_called_with_what_a_pickle_says(forged: object) -> None:
    with pytest.raises(UserError, match="some file: not a pickle of arrays"):
        unpickle(pickle.dumps({"data": forged}, protocol=2), "some file")


def test_a_function_is_not_changed_by_a_pickle() -> None:
    with pytest.raises(UserError, match="it changes a function"):
        unpickle(b"c_codecs\nencode\n(N}Vx\nI1\nstb.", "some file")


@pytest.mark.parametrize("put", [b"r" + (2**26).to_bytes(4, "little"), b"p67108864\n", b"q\xff"])
def test_a_value_s_number_takes_no_room_of_its_own(put: bytes) -> None:
    """Unpickled, the first two would take half a gigabyte for nine bytes."""
    with pytest.raises(UserError, match=r"some file: .*it gives a value the number \d+ after \d+ bytes"):
        unpickle(b"\x80\x02]" + put + b".", "some file")


def test_a_text_named_again_and_again_is_not_many_times_its_bytes() -> None:
    once = b"c_codecs\nencode\n(h\x01Vlatin1\ntR0"
    text = b"X" + (1000).to_bytes(4, "little") + b"a" * 1000 + b"q\x01"
    assert unpickle(text + once + b".", "some file") == "a" * 1000
    with pytest.raises(UserError, match="it makes more bytes than it has"):
        unpickle(text + once * 99 + b".", "some file")


@pytest.mark.parametrize("kind", ["?", "<i2", ">f4", "c16", "S3"])
@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_plain_arrays_come_back_as_they_were(kind: str, protocol: int) -> None:
    array = np.arange(12).reshape(3, 4).astype(kind)
    written = {"a": [array, array.T, (array, None)], b"b": {1: b"\xff", 2: 2.5, 3: True}}
    read = unpickle(pickle.dumps(written, protocol), "some file")
    for one, other in ((read["a"][0], array), (read["a"][1], array.T), (read["a"][2][0], array)):
        assert type(one) is np.ndarray
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)
    assert read[b"b"] == written[b"b"]
