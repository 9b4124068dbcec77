"""Damages the files of small data sets at random and opens them: run by test_readers.py, in a process of its own.

    python tests/faults/fuzz_readers.py COUNT FOLDER

Each of COUNT sets of a kind must be read, every image of it, or be refused with a message that names the damaged file
or the set's folder. Prints, as JSON, how many of each kind were, and by how much the process's memory grew.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import re
import resource
import shutil
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.data import find
from mlx_peft.data.opening import open_entry
from mlx_peft.data.sets import fashion_mnist, medmnist

RNG = np.random.default_rng(0)
FORMATS = {"a.jpg": "JPEG", "b.png": "PNG", "c.webp": "WEBP", "d.tif": "TIFF", "e.bmp": "BMP", "f.gif": "GIF"}


def peak_mib() -> float:
    """The most memory this process has had; from the kernel's own line where there is one, since what getrusage says
    begins with that of the process which started this one."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 2**10  # type: ignore[index]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def image(name: str) -> bytes:
    file = io.BytesIO()
    small = Image.fromarray(RNG.integers(0, 256, (5, 6, 3), np.uint8))
    small.resize((40, 32), Image.Resampling.BICUBIC).save(file, FORMATS[name])
    return file.getvalue()


def folder(root: Path) -> list[Path]:
    for label in ("x", "y"):
        (root / label).mkdir(parents=True)
        for name in FORMATS:
            (root / label / name).write_bytes(image(name))
    return sorted((root / "x").iterdir())


def cifar_files(root: Path) -> list[Path]:
    place = root / "cifar-10-batches-py"
    place.mkdir(parents=True)
    for name in [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]:
        content = {"data": RNG.integers(0, 256, (2, 3072), np.uint8), "labels": [3, 7]}
        (place / name).write_bytes(pickle.dumps(content, protocol=2))
    (place / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}, protocol=2))
    return [place / "data_batch_3", place / "batches.meta"]


def cifar_archive(root: Path) -> list[Path]:
    cifar_files(root)
    with tarfile.open(root / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(root / "cifar-10-batches-py", "cifar-10-batches-py")
    shutil.rmtree(root / "cifar-10-batches-py")
    return [root / "cifar-10-python.tar.gz"]


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def fashion(root: Path) -> list[Path]:
    root.mkdir(parents=True)
    for prefix, size in fashion_mnist.SIZES.items():
        for what, array in (("images-idx3", np.zeros((size, 28, 28), np.uint8)), ("labels-idx1", np.arange(size) % 10)):
            (root / f"{prefix}-{what}-ubyte.gz").write_bytes(gzip.compress(idx(array.astype(np.uint8))))
    return sorted(root.iterdir())


def med(root: Path) -> list[Path]:
    root.mkdir(parents=True)
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = RNG.integers(0, 256, (4, 28, 28), np.uint8)
        arrays[f"{split}_labels"] = np.array([[0], [1], [0], [1]], np.uint8)
    np.savez_compressed(root / "breastmnist.npz", **arrays)
    return [root / "breastmnist.npz"]


def svhn(root: Path) -> list[Path]:
    root.mkdir(parents=True)
    for name in ("train", "test"):
        content = {"X": RNG.integers(0, 256, (32, 32, 3, 4), np.uint8), "y": np.array([[1], [10], [3], [4]], np.uint8)}
        savemat(root / f"{name}_32x32.mat", content, do_compression=name == "train")
    return sorted(root.iterdir())


def table(root: Path) -> list[Path]:
    folder(root)
    lines = [f"{path.relative_to(root)},{path.parent.name}" for path in sorted(root.glob("*/*"))]
    (root / "labels.csv").write_text("\n".join(["path,label", *lines]) + "\n")
    return [root / "labels.csv"]


def vtab(root: Path) -> list[Path]:
    lines = []
    for number in range(8):
        path = root / "kitti" / "images" / "train800val200" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image("a.jpg"))
        lines.append(f"images/train800val200/{number:06d}.jpg {number % 4}\n")
    (root / "kitti" / "train800.txt").write_text("".join(lines[:4]))
    (root / "kitti" / "val200.txt").write_text("".join(lines[4:]))
    return [root / "kitti" / "train800.txt"]


def tables(root: Path) -> list[Path]:
    import pyarrow as pa
    from pyarrow import parquet

    root.mkdir(parents=True)
    columns = {"image": [{"bytes": image(name), "path": name} for name in FORMATS], "label": [0, 1] * 3}
    parquet.write_table(pa.table(columns), root / "train.parquet")
    return [root / "train.parquet"]


KINDS: dict[str, tuple[str, Callable[[Path], list[Path]]]] = {
    "folder": ("folder", folder),
    "pickles": ("cifar10", cifar_files),
    "tar.gz": ("cifar10", cifar_archive),
    "idx.gz": ("fashion_mnist", fashion),
    "npz": ("medmnist:breastmnist", med),
    "mat": ("svhn", svhn),
    "csv": ("csv", table),
    "lists": ("vtab-1k:kitti", vtab),
    "parquet": ("parquet", tables),
}


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Bits turned over, bytes set, parts cut off, cut out, repeated, or put after another file's beginning."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        if not changed:
            break
        reach = len(changed) if rng.random() < 0.6 else min(len(changed), 256)
        place = int(rng.integers(0, reach))
        kind = rng.integers(0, 7)
        if kind <= 1:
            changed[place] ^= 1 << int(rng.integers(0, 8))
        elif kind == 2:
            changed[place] = int(rng.integers(0, 256))
        elif kind == 3:
            changed[place : place + 4] = b"\xff\xff\xff\x7f"
        elif kind == 4:
            del changed[place:]
        elif kind == 5:
            changed[place:place] = changed[place : place + 64]
        else:
            changed[:4] = (b"PK\x03\x04", b"\x1f\x8b\x08\0", b"\x89PNG", b"\xff\xd8\xff\xe0")[int(rng.integers(0, 4))]
    return bytes(changed)


def attempt(name: str, root: Path, broken: Path) -> bool:
    """Whether all of a set was read; it raises where it was neither read nor refused by name."""
    entry = replace(find(name), variants=(replace(find(name).variants[0], sizes={}),))
    config = schema.Data(name=name, root=root, split=schema.Split(val=0), threads=1)
    try:
        for split in open_entry(entry, config).splits.values():
            for row in range(split.size):
                assert split.images.read(row).dtype == np.uint8
    except UserError as error:
        text = str(error)
        assert broken.name in text or str(root) in text or "train/" in text, f"{broken} is not named: {text}"
        return False
    return True


def run(count: int, place: Path) -> dict[str, object]:
    fashion_mnist.SIZES.update({"train": 6, "t10k": 4})
    assert "breastmnist" in medmnist.SETS
    outcomes = {}
    before = peak_mib()
    for kind, (name, make) in KINDS.items():
        root = place / kind
        files = make(root)
        assert attempt(name, root, files[0]), f"{kind}: the set that is to be damaged cannot be read"
        whole = {file: file.read_bytes() for file in files}
        rng = np.random.default_rng(1)
        read = 0
        for number in range(count):
            file = files[number % len(files)]
            file.write_bytes(damaged(whole[file], rng))
            read += attempt(name, root, file)
            file.write_bytes(whole[file])
        outcomes[kind] = {"read": read, "refused": count - read}
    return {"outcomes": outcomes, "grown_mib": peak_mib() - before}


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    print(json.dumps(run(int(sys.argv[1]), Path(sys.argv[2]))))
