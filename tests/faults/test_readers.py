"""Damaged and malicious sets: read or refused by name; nothing hangs, runs, is written elsewhere or fills memory."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from halves import daily
from hanging import HUNG

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.data import open_dataset

SCRIPT = Path(__file__).with_name("fuzz_readers.py")
QUICK, ALL = 12, 250
"""Damaged sets of each of the nine kinds: some on every run, and the 2,250 of the slow test."""

GROWN_MIB = 600
"""How much memory the reading of any number of damaged sets of a few hundred kilobytes may take, Arrow's and scipy's
libraries, which are loaded on the way, included. One array whose size is believed would take gigabytes."""


def fuzzed(count: int, place: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, str(count), str(place / "sets")],
        capture_output=True,
        text=True,
        timeout=HUNG,
        env={**os.environ, "HF_HOME": str(place / "cache"), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["outcomes"]) == 9
    for kind, outcome in found["outcomes"].items():
        assert outcome["read"] + outcome["refused"] == count
        assert outcome["refused"], f"{kind}: damage that nothing notices tests nothing"
    assert found["grown_mib"] < GROWN_MIB


def test_some_damaged_sets_are_read_or_refused_by_name(tmp_path: Path) -> None:
    fuzzed(QUICK, tmp_path)


@pytest.mark.slow
def test_thousands_of_damaged_sets_are_read_or_refused_by_name(tmp_path: Path) -> None:
    fuzzed(ALL, tmp_path)


class Trap:
    """Pickled, it is an order to create a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def archive(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> None:
    with tarfile.open(path, "w:gz") as written:
        for member, content in members:
            member.size = len(content)
            written.addfile(member, io.BytesIO(content))


def traversal(root: Path) -> None:
    """Members above the root, at an absolute path and through a link, beside a wanted name that is a trap."""
    link = tarfile.TarInfo("cifar-10-batches-py")
    link.type, link.linkname = tarfile.SYMTYPE, str(root.parent)
    archive(
        root / "cifar-10-python.tar.gz",
        (tarfile.TarInfo("../sprung"), b"x"),
        (tarfile.TarInfo(str(root.parent / "sprung")), b"x"),
        (link, b""),
        (tarfile.TarInfo("cifar-10-batches-py/sprung"), b"x"),
        (tarfile.TarInfo("cifar-10-batches-py/data_batch_1"), pickle.dumps(Trap(root.parent / "sprung"), 2)),
    )


def code_in_a_pickle(root: Path) -> None:
    place = root / "cifar-10-batches-py"
    place.mkdir()
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"]:
        (place / name).write_bytes(pickle.dumps(Trap(root.parent / "sprung"), 2))


def compressed(head: bytes) -> bytes:
    """A head and 2 GiB of zeros as a gzip file of many members, the same one again and again."""
    return gzip.compress(head) + gzip.compress(bytes(2**24), 1) * 2**7


def tar_bomb(root: Path) -> None:
    """A file of zeros under an unwanted name: nine megabytes of archive."""
    member = tarfile.TarInfo("cifar-10-batches-py/other")
    member.size = 2**31
    (root / "cifar-10-python.tar.gz").write_bytes(compressed(member.tobuf()))


def header_bomb(root: Path) -> None:
    """A header of two gigabytes, which tarfile would read into memory whole."""
    member = tarfile.TarInfo("pax")
    member.type, member.size = tarfile.XHDTYPE, 2**31 - 512
    (root / "cifar-10-python.tar.gz").write_bytes(compressed(member.tobuf()))


HOLE = 2**31


def sparse(root: Path, header: bytes) -> None:
    """A wanted member that is all hole: some hundred bytes of archive, zeros to whoever reads it."""
    (root / "cifar-100-python.tar.gz").write_bytes(gzip.compress(header + bytes(1024)))


def gnu_sparse(root: Path) -> None:
    """As ``tar --sparse --format=gnu`` writes it: one segment of no bytes at the end, then the real size."""
    member = tarfile.TarInfo("cifar-100-python/train")
    member.type = tarfile.GNUTYPE_SPARSE
    head = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    head[386:410] = b"%011o\0%011o\0" % (HOLE, 0)
    head[483:495] = b"%011o\0" % HOLE
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    sparse(root, bytes(head))


def pax_sparse(root: Path) -> None:
    """As ``tar --sparse --format=pax`` writes it: the map of segments in the member's first block."""
    member = tarfile.TarInfo("GNUSparseFile.0/train")
    words = {"major": "1", "minor": "0", "name": "cifar-100-python/train", "realsize": str(HOLE)}
    member.pax_headers = {f"GNU.sparse.{word}": value for word, value in words.items()}
    member.size = 512
    sparse(root, member.tobuf(tarfile.PAX_FORMAT) + f"1\n{HOLE}\n0\n".encode().ljust(512, b"\0"))


def long_member(root: Path) -> None:
    member = tarfile.TarInfo("cifar-100-python/train")
    member.size = HOLE
    sparse(root, member.tobuf())


def sparse_file(root: Path) -> None:
    """What such an archive unpacks to: a file of zeros that takes no room on the disk."""
    (root / "cifar-100-python").mkdir()
    for name in ("train", "test", "meta"):
        with (root / "cifar-100-python" / name).open("wb") as file:
            file.truncate(HOLE)


def npy(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


def zipped(root: Path, large: bytes, small: Callable[[tuple[int, ...]], bytes]) -> None:
    """MedMNIST's six arrays, the first with 768 MiB after its head."""
    with zipfile.ZipFile(root / "breastmnist.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as written:
        for split, size in (("train", 546), ("val", 78), ("test", 156)):
            for what, shape in (("images", (size, 28, 28)), ("labels", (size, 1))):
                first = (split, what) == ("train", "images")
                with written.open(f"{split}_{what}.npy", "w") as file:
                    file.write(large if first else small(shape))
                    for _ in range(3 * 2**4 if first else 0):
                        file.write(b" " * 2**24)


def zip_bomb(root: Path) -> None:
    """An array much longer than its header says."""
    zipped(root, npy((546, 28, 28)), lambda shape: npy(shape) + bytes(int(np.prod(shape))))


def zip_header_bomb(root: Path) -> None:
    """An npy header of two gigabytes, which NumPy would read into memory whole."""
    zipped(root, b"\x93NUMPY\x02\x00\xff\xff\xff\x7f", npy)


def idx_bomb(root: Path) -> None:
    head = bytes((0, 0, 8, 3)) + b"".join(side.to_bytes(4, "big") for side in (60_000, 28, 28))
    (root / "train-images-idx3-ubyte.gz").write_bytes(compressed(head))


def image_bomb(root: Path) -> None:
    """30,000 x 30,000 pixels, 900 MB as bytes, in a file of some kilobytes."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(10**6))))
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in (*chunks, (b"IEND", b"")):
        data += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    for name in ("a", "b"):
        (root / name).mkdir()
        (root / name / "bomb.png").write_bytes(data)


BOMBS: dict[Callable[[Path], None], tuple[str, str]] = {
    traversal: ("cifar10", "no cifar-10-batches-py/"),
    code_in_a_pickle: ("cifar10", "not a pickle of arrays"),
    tar_bomb: ("cifar10", "it unpacks to more than 256 MiB"),
    header_bomb: ("cifar10", "it unpacks to more than 256 MiB"),
    gnu_sparse: ("cifar100", "cifar-100-python/train is a sparse file"),
    pax_sparse: ("cifar100", "cifar-100-python/train is a sparse file"),
    long_member: ("cifar100", "cifar-100-python/train: 2,147,483,648 bytes; at most 268,435,456 are read"),
    sparse_file: ("cifar100", "cifar-100-python/train: 2,147,483,648 bytes; at most 268,435,456 are read"),
    zip_bomb: ("medmnist:breastmnist", "train_images is longer than"),
    zip_header_bomb: ("medmnist:breastmnist", r"version \(2, 0\) of the npy format"),
    idx_bomb: ("fashion_mnist", "more than 47040016 bytes"),
    image_bomb: ("folder", "bomb.png: not a readable image"),
}

BOUND_MIB = 700
"""Of the whole process: the interpreter and the libraries take about 200, an archive may be unpacked up to 256."""


@pytest.fixture(scope="module")
def opener() -> Iterator[Callable[[str, Path, Path], str]]:
    """What a process of its own says of a set, by its name, its root, and a file to say it in."""
    command = [sys.executable, SCRIPT.with_name("open_sets.py")]
    with subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout

        def opened(name: str, root: Path, told: Path) -> str:
            process.stdin.write(f"{name}\t{root}\t{told}\n")
            process.stdin.flush()
            assert process.stdout.readline() == "0\n"
            return told.read_text("utf-8")

        yield opened
        process.stdin.close()


@pytest.mark.parametrize(
    "bomb", daily(BOMBS, *(bomb for bomb in BOMBS if bomb is not zip_header_bomb)), ids=lambda bomb: bomb.__name__
)
def test_a_malicious_set_is_refused_by_name_and_does_nothing(
    tmp_path: Path, bomb: Callable[[Path], None], opener: Callable[[str, Path, Path], str]
) -> None:
    name, message = BOMBS[bomb]
    place = tmp_path / "place"
    root = place / "outer" / "root"
    root.mkdir(parents=True)
    bomb(root)
    before = sorted(place.rglob("*"))
    memory, _, text = opener(name, root, tmp_path / "told").partition("\n")
    assert str(root) in text
    assert re.search(message, text)
    assert float(memory) < BOUND_MIB
    assert sorted(tmp_path.rglob("*")) == sorted([place, *before, tmp_path / "told"]), "nothing was created"


@pytest.mark.parametrize("wrong", ["png", "npz", "tar.gz", "parquet"])
def test_a_file_under_another_s_name_is_refused_by_name(tmp_path: Path, wrong: str) -> None:
    """A PNG where an archive should be, an archive where an image should be."""
    from PIL import Image

    files = {"medmnist:breastmnist": "breastmnist.npz", "cifar10": "cifar-10-python.tar.gz", "parquet": "train.parquet"}
    contents = {"png": io.BytesIO(), "npz": io.BytesIO(), "tar.gz": io.BytesIO(), "parquet": io.BytesIO()}
    Image.new("RGB", (9, 9)).save(contents["png"], "PNG")
    np.savez(contents["npz"], a=np.zeros(3))
    with tarfile.open(fileobj=contents["tar.gz"], mode="w:gz") as written:
        written.addfile(tarfile.TarInfo("a"))
    contents["parquet"].write(b"PAR1")
    for name, file in files.items():
        (tmp_path / file).write_bytes(contents[wrong].getvalue())
        with pytest.raises(UserError, match=file):
            open_dataset(schema.Data(name=name, root=tmp_path))
