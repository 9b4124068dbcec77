"""CIFAR's files as they are published, with few images."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from mlx_peft.config import schema
from mlx_peft.data import Dataset
from mlx_peft.data.opening import open_entry
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
