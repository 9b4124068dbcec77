"""Tensors and folders on disk: read with suspicion, written whole or not at all."""

from __future__ import annotations

import errno
import importlib
import json
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mlx_peft.config.border import Tensors
from mlx_peft.config.errors import UserError

FLOATS = {"F64", "F32", "F16", "BF16"}
WORDS = {"U32"}
"""The codes of quantised weights."""
PICKLES = {".pth", ".pt", ".bin", ".tar"}


def read_tensors(path: Path, *, words: bool = False) -> Tensors:
    """The tensors of a ``.safetensors`` or ``.pth`` file as float32; with ``words``, uint32 ones of the former too.

    Raises:
        UserError: where the file is missing, damaged, of another kind, or holds values that are not finite.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path, words=words)[0]
    if path.suffix not in PICKLES:
        raise UserError(f"{path}: weights are read from a .safetensors or .pth file, or from a folder of timm's")
    _must_be_file(path)
    try:
        reader = importlib.import_module("torch_ref.pth")
    except ImportError as error:
        raise UserError(
            f"{path}: a {path.suffix} file can only be read with PyTorch ({error}); install it with: "
            "pip install 'mlx-peft[torch]', or use a .safetensors file"
        ) from error
    tensors: Tensors = reader.read_pth(path)
    return _finite(path, tensors)


def read_safetensors(path: Path, *, words: bool = False) -> tuple[Tensors, dict[str, str]]:
    """The tensors of a safetensors file, floats of any width as float32, and its metadata.

    With ``words``, there may be uint32 ones, which stay as they are.

    Raises:
        UserError: where the file is missing or damaged, or holds values that are not finite or of a type without an
            exact float32.
    """
    _must_be_file(path)
    try:
        with safe_open(path, framework="numpy") as file:  # the parser checks every length and offset of the header
            metadata = dict(file.metadata() or {})
            dtypes = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - no mapping
            if odd := sorted(
                name for name, dtype in dtypes.items() if dtype not in (FLOATS | WORDS if words else FLOATS)
            ):
                raise UserError(f"{path}: tensors are not of a float type: {listed(f'{n} ({dtypes[n]})' for n in odd)}")
            tensors = {name: file.get_tensor(name) for name, dtype in dtypes.items() if dtype != "BF16"}
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    tensors |= _bfloat16(path, [name for name, dtype in dtypes.items() if dtype == "BF16"])
    return _finite(path, {name: exact(tensors[name]) for name in dtypes}), metadata


def exact(tensor: np.ndarray) -> np.ndarray:
    """C-contiguous: the words of codes as they are, anything else as float32."""
    return np.ascontiguousarray(tensor, None if tensor.dtype == np.uint32 else np.float32)


def _bfloat16(path: Path, names: list[str]) -> Tensors:
    """NumPy has no bfloat16: its bits are the upper half of a float32's. The header has been checked already."""
    if not names:
        return {}
    raw = np.memmap(path, np.uint8, mode="r")
    start = 8 + int(raw[:8].view("<u8")[0])
    header = json.loads(bytes(raw[8:start]))
    result = {}
    for name in names:
        begin, end = (start + offset for offset in header[name]["data_offsets"])
        bits = np.frombuffer(raw[begin:end], "<u2").astype(np.uint32) << 16
        result[name] = bits.view(np.float32).reshape(header[name]["shape"])
    return result


def _finite(path: Path, tensors: Tensors) -> Tensors:
    if broken := sorted(name for name, tensor in tensors.items() if not np.isfinite(tensor).all()):
        raise UserError(f"{path}: NaN or infinite values in {listed(broken)}")
    return tensors


def _must_be_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises UserError where the file is missing, no JSON, or something else than an object."""
    _must_be_file(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: a JSON object was expected, not {type(value).__name__}")
    return value


def listed(names: Iterable[str], limit: int = 12) -> str:
    """Names for a message, the rest of a long list counted."""
    names = list(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Writes tensors, float32 or words.

    The same tensors give the same bytes as long as the metadata has one key at most.
    """
    save_file({name: exact(tensors[name]) for name in sorted(tensors)}, path, metadata)
    path.chmod(path.parent.stat().st_mode & 0o666)  # the library lets the owner alone read it, whatever the umask


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes indented JSON."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@contextmanager
def new_folder(target: Path, replaceable: Collection[str] = ()) -> Iterator[Path]:
    """A folder to write files into, which becomes ``target`` at the end, or vanishes if anything goes wrong.

    Args:
        replaceable: names of files that an earlier ``target`` may hold; it is replaced as a whole.

    Raises:
        UserError: where ``target`` is a file or holds other files, or cannot be written.
    """
    with writing(target):
        if target.exists() and (not target.is_dir() or {file.name for file in target.iterdir()} - {*replaceable}):
            raise UserError(f"{target}: exists already; name a new folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as beside:
            folder = Path(beside, "new")
            folder.mkdir()
            yield folder
            for file in (*folder.iterdir(), folder):
                to_disk(file)
            if target.exists():
                os.replace(target, Path(beside, "old"))
            os.replace(folder, target)
            to_disk(target.parent)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turns what the disk, or safetensors, refuses in the block into a UserError."""
    try:
        yield
    except OSError as error:
        reason = "no space left on the device" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error
        raise UserError(f"{target}: cannot be written: {reason}") from error
    except SafetensorError as error:
        raise UserError(f"{target}: cannot be written: {error}") from error


def to_disk(path: Path) -> None:
    """Waits until a file, or the list of a folder's files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
