"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), from the Python or the binary version, as a folder or as the archive."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.data.dataset import ArrayImages, Split
from mlx_peft.data.download import Remote, fetch
from mlx_peft.data.entry import Entry, Found, Variant
from mlx_peft.data.looking import Watch
from mlx_peft.data.pickles import unpickle

SIDE = 32
_PIXELS = 3 * SIDE * SIDE
_MAX_UNPACKED = 2**28
"""At most so many bytes are unpacked of an archive, or read of a file: the real archives have 186 MB."""


@dataclass(frozen=True)
class Version:
    """One of the two published forms of a set: where its files are, and how they are read."""

    folder: str
    archive: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    read_batch: Callable[[Cifar, bytes, str], tuple[np.ndarray, np.ndarray]]
    read_names: Callable[[Cifar, bytes, str], list[str]]


@dataclass(frozen=True)
class Cifar:
    """What distinguishes CIFAR-10 from CIFAR-100."""

    name: str
    classes: int
    labels_key: str
    names_key: str
    label_bytes: int
    versions: tuple[Version, ...]
    remote: Remote


def read_cifar(cifar: Cifar, config: schema.Data, variant: Variant, watch: Watch) -> Found:
    """Finds and reads a set. Raises UserError where it is missing or damaged."""
    found = _find(cifar, config.root)
    notes: tuple[str, ...] = ()
    if found is None and config.download:
        fetch(cifar.remote, config.root)
        notes = (f"downloaded {cifar.remote.url}",)
        found = _find(cifar, config.root)
    if found is None:
        known = " or ".join(f"{version.folder}/, {version.archive}" for version in cifar.versions)
        raise UserError(
            f"{cifar.name}: none of {known} is in {config.root}; set data.download: true "
            f"({cifar.remote.megabytes} from {cifar.remote.url}), or data.root to where it is"
        )
    version, place = found
    wanted = (*version.train, *version.test, version.names)
    files = _archive_members(place, version.folder, wanted) if place.is_file() else _folder_files(place, wanted)
    classes = version.read_names(cifar, files[version.names], f"{place}: {version.names}")
    if len(classes) != cifar.classes:
        raise UserError(f"{place}: {version.names}: {len(classes)} class names, not {cifar.classes}")
    splits = {}
    for split, names in (("train", version.train), ("test", version.test)):
        batches = [_checked(cifar, version, files.pop(name), f"{place}: {name}") for name in names]
        pixels, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        splits[split] = Split(split, ArrayImages.whole(pixels, split), labels)
    return Found(tuple(classes), splits, notes)


def _find(cifar: Cifar, root: Path) -> tuple[Version, Path] | None:
    for version in cifar.versions:
        for folder in (root / version.folder, root):
            if (folder / version.names).is_file() and (folder / version.test[0]).is_file():
                return version, folder
    for version in cifar.versions:
        for archive in (root / version.archive, root):
            if archive.is_file() and archive.name == version.archive:
                return version, archive
    return None


def _folder_files(folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    try:
        for name in names:
            if (size := (folder / name).stat().st_size) > _MAX_UNPACKED:
                raise _too_large(folder / name, size)
        return {name: (folder / name).read_bytes() for name in names}
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error


def _too_large(where: object, size: int) -> UserError:
    return UserError(f"{where}: {size:,} bytes; at most {_MAX_UNPACKED:,} are read")


class _Bounded(gzip.GzipFile):
    """Ends with an error rather than unpack a bomb, whatever in the archive asks for the bytes."""

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        if self.tell() > _MAX_UNPACKED:
            raise ValueError(f"it unpacks to more than {_MAX_UNPACKED // 2**20} MiB")
        return data


def _archive_members(archive: Path, folder: str, names: tuple[str, ...]) -> dict[str, bytes]:
    """The wanted files of an archive, in memory: nothing is extracted, so no member can land anywhere.

    A sparse member is refused: its holes take no bytes of the archive, and are read as zeros.
    """
    paths = {f"{folder}/{name}": name for name in names}
    found: dict[str, bytes] = {}
    try:
        with _Bounded(archive) as unpacked, tarfile.open(fileobj=unpacked, mode="r|") as members:
            for member in members:
                name = paths.get(member.name.removeprefix("./"))
                if name is None or name in found or not member.isreg():
                    continue
                if member.issparse():
                    raise UserError(f"{archive}: {member.name} is a sparse file; pack it again as an ordinary one")
                if member.size > _MAX_UNPACKED:
                    raise _too_large(f"{archive}: {member.name}", member.size)
                file = members.extractfile(member)
                found[name] = file.read() if file else b""
                if len(found) == len(paths):
                    return found
    except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError) as error:
        raise UserError(f"{archive}: not a readable tar.gz archive ({error}); fetch it again") from error
    missing = [path for path, name in paths.items() if name not in found]
    raise UserError(f"{archive}: no {missing[0]} in the archive")


def _checked(cifar: Cifar, version: Version, data: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """One file's images, uint8 ``(n, 32, 32, 3)``, and labels, int64 ``(n,)``."""
    flat, labels = version.read_batch(cifar, data, where)
    if flat.dtype != np.uint8 or flat.ndim != 2 or flat.shape[1] != _PIXELS or labels.shape != flat.shape[:1]:
        raise UserError(
            f"{where}: data {flat.dtype} {flat.shape} and labels {labels.shape} are not rows of {_PIXELS} uint8"
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < cifar.classes:
        raise UserError(f"{where}: labels {labels.min()} to {labels.max()}, not 0 to {cifar.classes - 1}")
    return np.ascontiguousarray(flat.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)), labels


def _python_batch(cifar: Cifar, data: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    content = _dictionary(data, where, "data", cifar.labels_key)
    labels = content[cifar.labels_key]
    if not isinstance(content["data"], np.ndarray) or not _integers(labels):
        raise UserError(f"{where}: 'data' is not an array or {cifar.labels_key!r} not a list of integers")
    return content["data"], np.array(labels, np.int64)


def _integers(labels: object) -> bool:
    return isinstance(labels, list) and all(isinstance(label, int) and 0 <= label < 2**31 for label in labels)


def _python_names(cifar: Cifar, data: bytes, where: str) -> list[str]:
    names = _dictionary(data, where, cifar.names_key)[cifar.names_key]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{where}: {cifar.names_key!r} is not a list of names")
    return names


def _dictionary(data: bytes, where: str, *keys: str) -> dict[str, object]:
    content = unpickle(data, where)
    if not isinstance(content, dict):
        raise UserError(f"{where}: holds no dictionary")
    # Pickles rewritten by Python 3 may have bytes for keys, where Python 2 had strings.
    content = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in content.items()}
    for key in keys:
        if key not in content:
            raise UserError(f"{where}: no {key!r}; there is {', '.join(map(repr, content))}")
    return content


def _binary_batch(cifar: Cifar, data: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    row = cifar.label_bytes + _PIXELS
    if not data or len(data) % row:
        raise UserError(f"{where}: {len(data)} bytes are not rows of {row}")
    rows = np.frombuffer(data, np.uint8).reshape(-1, row)
    return rows[:, cifar.label_bytes :], rows[:, cifar.label_bytes - 1].astype(np.int64)


def _binary_names(cifar: Cifar, data: bytes, where: str) -> list[str]:
    return data.decode("ascii", "replace").split()


def _versions(
    stem: str, python: str, binary: str, train: tuple[str, ...], test: str, names: tuple[str, str]
) -> tuple[Version, ...]:
    return (
        Version(python, f"{stem}-python.tar.gz", train, (test,), names[0], _python_batch, _python_names),
        Version(
            binary,
            f"{stem}-binary.tar.gz",
            tuple(f"{name}.bin" for name in train),
            (f"{test}.bin",),
            names[1],
            _binary_batch,
            _binary_names,
        ),
    )


CIFAR10 = Cifar(
    name="cifar10",
    classes=10,
    labels_key="labels",
    names_key="label_names",
    label_bytes=1,
    versions=_versions(
        "cifar-10",
        "cifar-10-batches-py",
        "cifar-10-batches-bin",
        tuple(f"data_batch_{number}" for number in range(1, 6)),
        "test_batch",
        ("batches.meta", "batches.meta.txt"),
    ),
    remote=Remote(
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        170_498_071,
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    ),
)
CIFAR100 = Cifar(
    name="cifar100",
    classes=100,
    labels_key="fine_labels",
    names_key="fine_label_names",
    label_bytes=2,
    versions=_versions(
        "cifar-100",
        "cifar-100-python",
        "cifar-100-binary",
        ("train",),
        "test",
        ("meta", "fine_label_names.txt"),
    ),
    remote=Remote(
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        169_001_437,
        "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    ),
)

OFFICIAL = Variant("official", "the published training and test images", {"train": 50_000, "test": 10_000})
ENTRIES = {
    cifar.name: Entry(
        read=partial(read_cifar, cifar),
        description=f"60,000 photographs of 32 px in {cifar.classes} classes, 10,000 of them for the test",
        source="https://www.cs.toronto.edu/~kriz/cifar.html",
        licence="none stated; cite Krizhevsky 2009",
        classes=cifar.classes,
        variants=(OFFICIAL,),
    )
    for cifar in (CIFAR10, CIFAR100)
}
