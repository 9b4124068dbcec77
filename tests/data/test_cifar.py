"""CIFAR in its published forms: both versions, as folders and as archives, and everything that is not CIFAR."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.data import Dataset, open_dataset
from mlx_peft.data.opening import open_entry
from mlx_peft.data.pickles import unpickle
from mlx_peft.data.sets import cifar

BATCH = 20
RNG = np.random.default_rng(0)
ROWS = RNG.integers(0, 256, (6 * BATCH, 3072), np.uint8)
TEN, HUNDRED = cifar.CIFAR10, cifar.CIFAR100
TRAIN = 5 * BATCH
SMALL = replace(cifar.OFFICIAL, sizes={"train": TRAIN, "test": BATCH})
LABELS = {TEN.name: np.arange(6 * BATCH) % 10, HUNDRED.name: np.arange(6 * BATCH) * 7 % 100}
NAMES = {TEN.name: [f"class{n}" for n in range(10)], HUNDRED.name: [f"fine{n}" for n in range(100)]}


def short(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text


def integer(number: int) -> bytes:
    return b"J" + number.to_bytes(4, "little")


def python2_pickle(rows: np.ndarray, labels: list[int], key: str) -> bytes:
    """A batch as Python 2 and its NumPy wrote it, opcode by opcode: the form in which CIFAR is published."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0t" + short(b"b") + b"tR(K\1("
        + integer(rows.shape[0]) + integer(rows.shape[1]) + b"tcnumpy\ndtype\n(" + short(b"u1") + b"K\0K\1tR(K\3"
        + short(b"|") + b"NNN" + integer(0xFFFFFFFF) + integer(0xFFFFFFFF) + b"K\0tb\x89T"
        + rows.size.to_bytes(4, "little") + rows.tobytes() + b"tb"
    )  # fmt: skip
    listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + short(b"data") + array + short(key.encode()) + listed + b"u."


def python3_pickle(rows: np.ndarray, labels: list[int], key: str) -> bytes:
    return pickle.dumps({b"data": rows, key.encode(): labels, b"filenames": ["x.png"]}, protocol=2)


def python_files(kind: cifar.Cifar, write: Callable[..., bytes] = python2_pickle) -> dict[str, bytes]:
    version = kind.versions[0]
    names = [*version.train, *version.test]
    sizes = [TRAIN // len(version.train)] * len(version.train) + [BATCH]
    starts = np.cumsum([0, *sizes])
    files = {
        name: write(ROWS[start : start + size], LABELS[kind.name][start : start + size].tolist(), kind.labels_key)
        for name, start, size in zip(names, starts, sizes, strict=False)
    }
    return files | {version.names: pickle.dumps({kind.names_key: NAMES[kind.name]}, protocol=2)}


def binary_files(kind: cifar.Cifar) -> dict[str, bytes]:
    version = kind.versions[1]
    labels = LABELS[kind.name].astype(np.uint8)[:, None]
    coarse = np.full_like(labels, 255)
    rows = np.hstack([coarse, labels, ROWS] if kind.label_bytes == 2 else [labels, ROWS])
    names = [*version.train, *version.test]
    parts = np.split(rows, 6) if len(version.train) == 5 else [rows[: 5 * BATCH], rows[5 * BATCH :]]
    files = {name: part.tobytes() for name, part in zip(names, parts, strict=True)}
    return files | {version.names: "\n".join([*NAMES[kind.name], ""]).encode()}


def as_folder(root: Path, version: cifar.Version, files: dict[str, bytes]) -> None:
    (root / version.folder).mkdir(parents=True)
    for name, content in files.items():
        (root / version.folder / name).write_bytes(content)


def as_archive(root: Path, version: cifar.Version, files: dict[str, bytes]) -> None:
    root.mkdir(exist_ok=True)
    with tarfile.open(root / version.archive, "w:gz", compresslevel=1) as archive:
        folder = tarfile.TarInfo(version.folder)
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in files.items():
            member = tarfile.TarInfo(f"{version.folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def opened(kind: cifar.Cifar, root: Path, **split: float) -> Dataset:
    entry = replace(cifar.ENTRIES[kind.name], variants=(SMALL,))
    return open_entry(entry, schema.Data(name=kind.name, root=root, split=schema.Split(**split)))


def check(dataset: Dataset, kind: cifar.Cifar) -> None:
    """That every image and label is where it was put."""
    assert dataset.classes == tuple(NAMES[kind.name])
    images = ROWS.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    assert dataset.test
    for split, first in ((dataset.train, 0), (dataset.test, 5 * BATCH)):
        assert np.array_equal(split.labels, LABELS[kind.name][first : first + split.size])
        assert all(np.array_equal(split.images.read(n), images[first + n]) for n in range(split.size))


@pytest.mark.parametrize("kind", [TEN, HUNDRED], ids=lambda kind: kind.name)
@pytest.mark.parametrize("layout", [as_folder, as_archive])
@pytest.mark.parametrize("form", [0, 1], ids=["python", "binary"])
def test_each_published_form_is_read(tmp_path: Path, kind: cifar.Cifar, layout: Callable[..., None], form: int) -> None:
    files = binary_files(kind) if form else python_files(kind)
    layout(tmp_path, kind.versions[form], files)
    check(opened(kind, tmp_path, val=0), kind)


def test_pickles_written_again_by_python_3_are_read(tmp_path: Path) -> None:
    as_folder(tmp_path, TEN.versions[0], python_files(TEN, python3_pickle))
    check(opened(TEN, tmp_path, val=0), TEN)


def test_the_root_may_be_the_folder_or_the_archive_itself(tmp_path: Path) -> None:
    as_folder(tmp_path, TEN.versions[0], python_files(TEN))
    as_archive(tmp_path / "archives", TEN.versions[1], binary_files(TEN))
    check(opened(TEN, tmp_path / TEN.versions[0].folder, val=0), TEN)
    check(opened(TEN, tmp_path / "archives" / TEN.versions[1].archive, val=0), TEN)


def test_all_forms_give_the_same_split(tmp_path: Path) -> None:
    hashes = set()
    for form, files in enumerate((python_files(TEN), binary_files(TEN))):
        as_archive(tmp_path / str(form), TEN.versions[form], files)
        dataset = opened(TEN, tmp_path / str(form), val=0.2)
        assert dataset.val
        hashes.add((dataset.train.sha256, dataset.val.sha256))
        assert (dataset.train.size, dataset.val.size) == (80, 20)
    assert len(hashes) == 1


def test_a_set_that_is_not_there_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cifar100: none of .*data\.download: true \(161\.2 MiB from https://"):
        open_dataset(schema.Data(name="cifar100", root=tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_part_of_the_set_is_refused(tmp_path: Path) -> None:
    as_folder(tmp_path, cifar.CIFAR10.versions[0], python_files(TEN))
    with pytest.raises(UserError, match=r"cifar10 in .*: 100 train images, not 50,000: it is not the whole set"):
        open_dataset(schema.Data(name="cifar10", root=tmp_path))


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


def test_members_that_point_elsewhere_are_not_written_anywhere(tmp_path: Path) -> None:
    files = python_files(TEN)
    version = TEN.versions[0]
    root = tmp_path / "root"
    as_archive(root, version, {"../../escaped": b"out", "/../../../escaped": b"out", **files})
    check(opened(TEN, root, val=0), TEN)
    assert [path.name for path in tmp_path.rglob("*")] == ["root", version.archive]


def test_a_link_in_the_place_of_a_file_is_not_followed(tmp_path: Path) -> None:
    files = python_files(TEN)
    version = TEN.versions[0]
    secret = tmp_path / "secret"
    secret.write_bytes(files.pop("test_batch"))
    with tarfile.open(tmp_path / version.archive, "w:gz") as archive:
        link = tarfile.TarInfo(f"{version.folder}/test_batch")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        archive.addfile(link)
        for name, content in files.items():
            member = tarfile.TarInfo(f"{version.folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with pytest.raises(UserError, match="no cifar-10-batches-py/test_batch in the archive"):
        opened(TEN, tmp_path)


def test_an_archive_that_unpacks_to_too_much_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_archive(tmp_path, TEN.versions[0], python_files(TEN))
    monkeypatch.setattr(cifar, "_MAX_UNPACKED", 100_000)
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz: .*it unpacks to more than"):
        opened(TEN, tmp_path)


@pytest.mark.parametrize("keep", [0, 10, 5000])
def test_a_truncated_archive_is_refused_by_name(tmp_path: Path, keep: int) -> None:
    version = TEN.versions[0]
    as_archive(tmp_path, version, python_files(TEN))
    path = tmp_path / version.archive
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=rf"{version.archive}: (not a readable tar\.gz archive|no cifar)"):
        opened(TEN, tmp_path)


def rows(count: int = BATCH, dtype: type = np.uint8, width: int = 3072) -> np.ndarray:
    return np.zeros((count, width), dtype)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds no dictionary"),
        ({"labels": [0] * BATCH}, "no 'data'; there is 'labels'"),
        ({"data": rows()}, "no 'labels'; there is 'data'"),
        ({"data": [0], "labels": [0]}, "'data' is not an array"),
        ({"data": rows(), "labels": ["0"] * BATCH}, "not a list of integers"),
        ({"data": rows(), "labels": [-1] * BATCH}, "not a list of integers"),
        ({"data": rows(), "labels": [10] * BATCH}, "labels 10 to 10, not 0 to 9"),
        ({"data": rows(), "labels": [0] * 7}, r"labels \(7,\) are not rows of 3072 uint8"),
        ({"data": rows(width=3071), "labels": [0] * BATCH}, "are not rows of 3072 uint8"),
        ({"data": rows(dtype=np.float32), "labels": [0] * BATCH}, "are not rows of 3072 uint8"),
        ({"data": np.full((1, 3072), "x", object), "labels": [0]}, "it has an array of 'O8'"),
    ],
)
def test_a_batch_that_is_not_cifar_is_refused_by_name(tmp_path: Path, content: object, message: str) -> None:
    as_folder(tmp_path, TEN.versions[0], python_files(TEN) | {"test_batch": pickle.dumps(content, protocol=2)})
    with pytest.raises(UserError, match=f"cifar-10-batches-py: test_batch: .*{message}"):
        opened(TEN, tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("test_batch.bin", bytes(3072), "3072 bytes are not rows of 3073"),
        ("test_batch.bin", b"", "0 bytes are not rows of 3073"),
        ("test_batch.bin", b"\x0a" + bytes(3072), "labels 10 to 10"),
        ("batches.meta.txt", b"cat\ndog\n", "2 class names, not 10"),
    ],
)
def test_a_binary_file_that_is_not_cifar_is_refused_by_name(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    as_folder(tmp_path, TEN.versions[1], binary_files(TEN) | {name: content})
    with pytest.raises(UserError, match=f"cifar-10-batches-bin: {name}: .*{message}"):
        opened(TEN, tmp_path)


def test_a_missing_batch_is_refused_by_name(tmp_path: Path) -> None:
    files = python_files(TEN)
    del files["data_batch_4"]
    as_folder(tmp_path, TEN.versions[0], files)
    with pytest.raises(UserError, match=r"data_batch_4: cannot be read \(No such file"):
        opened(TEN, tmp_path)
