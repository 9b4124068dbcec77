"""What a file of weights is, by what is in it: its name may say anything, and a server may have sent something else."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

from mlx_peft.config import weights
from mlx_peft.core.errors import UserError

Kind = Literal["safetensors", "torch", "npz"]
"""A file is safetensors, PyTorch's archive (or its pickles of before 1.6), or NumPy's archive of arrays."""

NAMES: dict[Kind, str] = {
    "safetensors": "a safetensors file",
    "torch": "a pickle, such as PyTorch writes",
    "npz": "an archive of NumPy's arrays",
}
OWN_SUFFIX: dict[str, Kind] = {".safetensors": "safetensors", ".npz": "npz"}
SUFFIXES: dict[str, Kind] = {suffix: OWN_SUFFIX.get(suffix, "torch") for suffix in weights.SUFFIXES}
"""A file's suffix says what a damaged one was meant to be."""

ZIP = b"PK\x03\x04"
PACKED = "unpack it first, with {}"
OTHERS: dict[bytes, str] = {
    b"\x1f\x8b": f"compressed with gzip: {PACKED.format('gunzip')}",
    b"BZh": f"compressed with bzip2: {PACKED.format('bunzip2')}",
    b"\xfd7zXZ": f"compressed with xz: {PACKED.format('unxz')}",
    b"(\xb5/\xfd": f"compressed with zstd: {PACKED.format('unzstd')}",
    b"7z\xbc\xaf": "a 7z archive: unpack it first",
    b"\x93NUMPY": "a single array of NumPy's, without names: put arrays by their names into an .npz",
    b"\x89HDF": "an HDF5 file, such as Keras writes: save the weights as safetensors",
    b"GGUF": "a GGUF file: take the model's safetensors",
    b"version https://git-lfs": "a pointer of Git LFS and not the file itself: fetch it with git lfs pull",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"%PDF": "a PDF",
}
"""Other kinds of files are known by their first bytes; what each is, and what to do."""

HEAD = 512
TAR = slice(257, 262)


def kind_of(path: Path) -> Kind:
    """What a file is; of one that is damaged, what its name says.

    Raises:
        UserError: where there is no file, or it is of another kind, with that and what would help.
    """
    head = _head(path)
    if not head:
        return _unknown(path, "an empty file")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size - 8:
        return "safetensors"  # first, for its length may begin like anything
    if (other := _other(head)) is not None:
        raise UserError(f"{path} is {other}")
    meant = SUFFIXES.get(path.suffix.lower())
    if head.startswith(ZIP):
        return _archive(path) or meant or _unknown(path, "a zip archive, and neither PyTorch's nor NumPy's")
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):  # a pickle's protocol
        return "torch"
    return meant or _unknown(path, "of an unknown kind")


def must_be(path: Path, kind: Kind) -> None:
    """Raises UserError where a file is another than the kind that its name says, or is not there."""
    if (found := kind_of(path)) != kind:
        raise UserError(f"{path} is {NAMES[found]}, and should be {NAMES[kind]}")


def _head(path: Path) -> bytes:
    if not path.is_file():
        raise UserError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    try:
        with open(path, "rb") as file:
            return file.read(HEAD)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def _other(head: bytes) -> str | None:
    """What a file is that holds no weights by their names; None where it may be one of ours."""
    text = b"" if b"\0" in head else head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<error")):
        return "a web page, such as a server sends in the place of a file that is not there or needs a login"
    if text.startswith((b"{", b"[")):
        return "JSON and no weights, perhaps the list of a model's parts or a server's answer"
    if head[TAR] == b"ustar":
        return f"a tar archive: {PACKED.format('tar -xf')}"
    return next((what for start, what in OTHERS.items() if head.startswith(start)), None)


def _archive(path: Path) -> Kind | None:
    """Whose archive it is, by its entries; None where it is neither's, or damaged."""
    try:
        with zipfile.ZipFile(path) as opened:
            names = opened.namelist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return None
    if any(name.rpartition("/")[2] in ("data.pkl", "constants.pkl") for name in names):
        return "torch"
    return "npz" if any(name.endswith(".npy") for name in names) else None


def _unknown(path: Path, what: str) -> Kind:
    raise UserError(f"{path} is {what}: weights are read from a safetensors, PyTorch or .npz file, or from a folder")
