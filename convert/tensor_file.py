"""A safetensors file: written in one pass with a digest of itself, read back, and checked when it is read again.

The digest is an entry of the file's metadata, ``"digest": "sha256:..."``: the SHA-256 of the whole file, header and
data, in which its own 64 digits are zeros. Any reader of safetensors opens the file, and anyone can check it. What
other tools write has none.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from convert.kinds import must_be
from convert.mapping import map_bytes
from mlx_peft.core.errors import UserError
from mlx_peft.core.json_io import from_json

TYPES: dict[str, type[np.generic]] = {
    "U64": np.uint64,
    "I64": np.int64,
    "F64": np.float64,
    "F32": np.float32,
    "U32": np.uint32,
    "I32": np.int32,
    "BF16": np.uint16,
    "F16": np.float16,
    "U16": np.uint16,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
"""Types in the order in which they lie in a file, and what NumPy reads their bytes as: it has no bfloat16."""

OWN = {np.dtype(kind): name for name, kind in TYPES.items() if name != "BF16"}
"""safetensors' names of NumPy's types, of which an array is written as it is."""

Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""A tensor's type and shape, by name."""

DIGEST, MARK = "digest", "sha256:"
UNKNOWN = "0" * 64
CHUNK = 1 << 20

LONGEST_NAME = 500
"""A tensor's name has at most so many characters; those of whole vision models in a training checkpoint have some
80."""


def header_of(tensors: Layout, metadata: Mapping[str, str] | None = None) -> tuple[bytes, list[str], int]:
    """What stands before the tensors, their order, and how many bytes they have; the digest is yet to be filled in.

    Eight bytes of length, then JSON, padded with spaces to a multiple of eight; tensors go by type and name, as the
    ``safetensors`` library has them.
    """
    types = list(TYPES)
    order = sorted(tensors, key=lambda name: (types.index(tensors[name][0]), name))
    header: dict[str, Any] = {"__metadata__": {**(metadata or {}), DIGEST: MARK + UNKNOWN}}
    end = 0
    for name in order:
        kind, shape = tensors[name]
        begin, end = end, end + np.dtype(TYPES[kind]).itemsize * math.prod(shape)
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, order, end


def write(
    path: Path, layout: Layout, tensor: Callable[[str], np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes tensors one after another, each in C order whatever its strides, and reads each back to compare it.

    Equal tensors and metadata give equal bytes.

    Args:
        layout: each tensor's type in the file, and its shape.
        tensor: gives the array of a name, of the NumPy type in ``TYPES``; one is held at once.

    Raises:
        UserError: where what is read again is not what was to be written.
    """
    header, order, _ = header_of(layout, metadata)
    digest = hashlib.sha256(header)
    whole = True
    with open(path, "w+b") as file:
        file.write(header)
        for name in order:
            given = tensor(name)
            begin = file.tell()
            data = np.ascontiguousarray(given).data
            file.write(data)
            digest.update(data)
            file.flush()
            whole = whole and _same(_read_back(file, begin, given), given)
        header = header.replace((MARK + UNKNOWN).encode(), (MARK + digest.hexdigest()).encode())
        file.seek(0)
        file.write(header)
        file.seek(0)
        whole = whole and file.read(len(header)) == header
    if not whole:
        raise UserError(f"{path}: what is read again is not what was written: the disk, or a library, changes it")


def _read_back(file: BinaryIO, begin: int, given: np.ndarray) -> np.ndarray:
    """An array of this type and shape from a place in a file, which is then at the array's end."""
    file.seek(begin)
    read = np.fromfile(file, given.dtype, given.size)
    return read.reshape(given.shape) if read.size == given.size else read


def _same(read: np.ndarray, given: np.ndarray) -> bool:
    """Whether two arrays are equal to the last bit, element by element: the order of their memory may differ."""
    bits = np.dtype(f"u{read.itemsize}")
    return read.shape == given.shape and np.array_equal(read.view(bits), given.view(bits))


@dataclass(frozen=True)
class TensorFile:
    """A file that was opened, its header sound, and its digest right where it has one.

    Attributes:
        raw: its bytes, mapped; they may be written to, and the file does not change.
        entries: of the header, by tensor: ``dtype``, ``shape`` and ``data_offsets``, which count from ``start``.
        metadata: but for the digest.
        sealed: whether it has a digest.
    """

    raw: np.memmap
    entries: dict[str, Any]
    start: int
    metadata: dict[str, str]
    sealed: bool

    def place(self, name: str) -> tuple[int, int]:
        """Where a tensor's bytes begin and end in the file."""
        begin, end = self.entries[name]["data_offsets"]
        return self.start + begin, self.start + end

    def array(self, name: str) -> np.ndarray:
        """A tensor as it lies, of its type in ``TYPES``, without a copy where it can. Raises KeyError for another."""
        begin, end = self.place(name)
        values = self.raw[begin:end].view(np.ndarray).view(TYPES[self.entries[name]["dtype"]])
        array: np.ndarray = np.require(values, requirements="A").reshape(self.entries[name]["shape"])
        return array


def open_file(path: Path, *, check: bool = True) -> TensorFile:
    """Opens a file; unless ``check`` is off, all of it is read to compare it with the digest that it may have.

    Raises:
        UserError: where it is missing or damaged, or no longer what was written.
    """
    must_be(path, "safetensors")
    try:
        with safe_open(path, framework="numpy") as file:  # the parser checks every length and offset of the header
            metadata = dict(file.metadata() or {})
        raw = map_bytes(path)
        start = 8 + int(raw[:8].view("<u8")[0])
        header = bytes(raw[:start])
        sealed = check_digest(path, header, metadata) if check else _is_marked(metadata)
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    if sealed:
        del metadata[DIGEST]
    try:
        entries: dict[str, Any] = from_json(header[8:])
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a whole safetensors file: {error}") from error
    entries.pop("__metadata__", None)
    if long := [name for name in entries if len(name) > LONGEST_NAME]:
        raise UserError(
            f"{path}: a tensor's name has {max(map(len, long)):,} characters ({long[0][:40]}...), and may "
            f"have {LONGEST_NAME}"
        )
    return TensorFile(raw, entries, start, metadata, sealed)


def check_digest(path: Path, header: bytes, metadata: Mapping[str, str]) -> bool:
    """Whether a file has a digest, which is then the right one.

    Raises:
        UserError: where it is another one, or one that is damaged itself.
    """
    if not _is_marked(metadata):
        return False
    value = metadata.get(DIGEST)
    damaged = UserError(
        f"{path} was damaged or changed after it was written: its content and its digest (the entry {DIGEST!r} of its "
        "metadata) do not agree. Take another copy of it, or make it again"
    )
    if value is None or not re.fullmatch(f"{MARK}[0-9a-f]{{64}}", value):
        raise damaged
    with open(path, "rb") as file:
        file.seek(len(header))
        if _digest(header.replace(value.encode(), (MARK + UNKNOWN).encode()), file) != value.removeprefix(MARK):
            raise damaged
    return True


def _is_marked(metadata: Mapping[str, str]) -> bool:
    """Whether one entry is the digest, or was before a bit of it was flipped. Others may be called or begin so."""
    return any(
        len(text) == len(MARK + UNKNOWN) and (name == DIGEST or (text.startswith(MARK) and _one_differs(name, DIGEST)))
        for name, text in metadata.items()
    )


def _one_differs(a: str, b: str) -> bool:
    return len(a) == len(b) and sum(map(str.__ne__, a, b)) == 1


def _digest(header: bytes, file: BinaryIO) -> str:
    """SHA-256 of a header and the rest of a file, through a small buffer: mapped, all of it would stay in memory."""
    digest, buffer = hashlib.sha256(header), memoryview(bytearray(CHUNK))
    while count := file.readinto(buffer):  # type: ignore[attr-defined]
        digest.update(buffer[:count])
    return digest.hexdigest()
