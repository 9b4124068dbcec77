"""Tensors and folders on disk: read with suspicion, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert import tensor_file
from convert.kinds import kind_of, must_be
from convert.mapping import from_bfloat16, let_go
from convert.pth import read_pth
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.core.json_io import from_json
from mlx_peft.core.sums import check_sum, write_with_sums

FLOATS = {"F64", "F32", "F16", "BF16"}
"""Weights have one of these types."""
WORDS = {"U32"}
"""The codes of quantised weights have this type."""
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""Weights may be written as these types; safetensors' names of them."""
BF16_INFINITY = 0x7F80
"""The bits of bfloat16's infinity: all those of the exponent."""
COUNTERS = ("position_ids", "num_batches_tracked", "n_averaged")
"""Buffers with these last names hold whole numbers and no weights: they are passed over."""


def renamed(tensors: Tensors, name_of: Callable[[str], str], where: str | Path = "the weights") -> Tensors:
    """The tensors under other names. Raises UserError, with both, where two become one: neither is dropped."""
    origin: dict[str, str] = {}
    for name in tensors:
        if (other := origin.setdefault(name_of(name), name)) != name:
            raise UserError(f"{where}: {other} and {name} are both called {name_of(name)} here: leave one of them out")
    return {new: tensors[name] for new, name in origin.items()}


def read_tensors(path: Path, *, words: bool = False) -> Tensors:
    """The tensors of a safetensors or PyTorch file as float32; with ``words``, uint32 ones of the former too.

    Which of the two it is, its content says, and not its name.

    Raises:
        UserError: where the file is missing, damaged, of another kind, or holds values that are not finite.
    """
    if kind_of(path) == "safetensors":
        return read_safetensors(path, words=words)[0]
    must_be(path, "torch")
    tensors = {name: tensor for name, tensor in read_pth(path).items() if not _counts(name)}
    if integers := sorted(name for name, tensor in tensors.items() if tensor.dtype.kind != "f"):
        raise UserError(f"{path}: these tensors are not of a float type: {listed(integers)}")
    return finite(path, {name: exact(tensor) for name, tensor in tensors.items()})


def read_safetensors(path: Path, *, words: bool = False) -> tuple[Tensors, dict[str, str]]:
    """The tensors of a safetensors file, floats of any width as float32, and its metadata.

    What is float32 in the file is mapped, not copied: it may be written to, and the file does not change. With
    ``words``, there may be uint32 tensors, which stay as they are.

    Raises:
        UserError: where the file is missing or damaged, or holds values that are not finite or of a type without an
            exact float32.
    """
    known = FLOATS | WORDS if words else FLOATS
    file = tensor_file.open_file(path)
    if odd := sorted(name for name, entry in file.entries.items() if entry["dtype"] not in known and not _counts(name)):
        types = (f"{name} ({file.entries[name]['dtype']})" for name in odd)
        raise UserError(f"{path}: these tensors are not of a float type: {listed(types)}")
    tensors = {}
    for name, entry in file.entries.items():
        if not _counts(name):
            tensors[name] = _widened(file.array(name), entry["dtype"]).reshape(entry["shape"])
            if entry["dtype"] not in ("F32", *WORDS):
                let_go(file.raw, *file.place(name))
    return finite(path, tensors), file.metadata


def is_sealed(path: Path) -> bool:
    """Whether a safetensors file has a digest, be it right or not. Raises as reading does."""
    return tensor_file.open_file(path, check=False).sealed


def without_digest(path: Path) -> tuple[str, ...]:
    """A note, where a safetensors file has no digest. Raises as reading does."""
    if is_sealed(path):
        return ()
    return (f"{path} has no digest: another tool, or an earlier version, wrote it, and it is read as it is",)


def describe_safetensors(path: Path) -> tuple[dict[str, tuple[str, tuple[int, ...]]], dict[str, str]]:
    """Each tensor's type and shape by name, and the metadata, with no tensor read.

    Raises:
        UserError: where the file is missing or damaged.
    """
    file = tensor_file.open_file(path, check=False)
    return {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in file.entries.items()}, file.metadata


def _widened(values: np.ndarray, kind: str) -> np.ndarray:
    """What lies in a file as float32 or words: where nothing needs to change, the same array."""
    return from_bfloat16(values) if kind == "BF16" else exact(values)


def _counts(name: str) -> bool:
    return name.rpartition(".")[2] in COUNTERS


def exact(tensor: np.ndarray) -> np.ndarray:
    """C-contiguous: the words of codes as they are, anything else as float32."""
    return np.ascontiguousarray(tensor, None if tensor.dtype == np.uint32 else np.float32)


def finite(path: Path, tensors: Tensors) -> Tensors:
    """The tensors. Raises UserError where a value is NaN or infinite."""
    if broken := sorted(name for name, tensor in tensors.items() if not np.isfinite(tensor).all()):
        raise UserError(f"{path} has NaN or infinite values in {listed(broken)}")
    return tensors


def _must_be_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")


MAX_JSON = 2**26
"""A JSON file may have so many bytes: the names of a million classes have about as many."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises UserError where the file is missing, not as it was written, or something else."""
    _must_be_file(path)
    if (size := path.stat().st_size) > MAX_JSON:
        raise UserError(f"{path} has {size:,} bytes, and at most {MAX_JSON:,} are read as JSON")
    check_sum(path)
    try:
        value = from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} should hold a JSON object, not {type(value).__name__}")
    return value


def listed(names: Iterable[str], limit: int = 12) -> str:
    """Names for a message, the rest of a long list counted."""
    names = list(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def write_safetensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None, dtype: str = "float32"
) -> None:
    """Writes tensors, floats as ``dtype`` and words as they are, with the digest that reading them checks.

    The same tensors give the same bytes.

    Raises:
        UserError: where a value is not finite, or too large for ``dtype``: nothing would read the file.
    """
    kinds = {name: _kind(tensor, dtype) for name, tensor in tensors.items()}
    tensor_file.write(
        path,
        {name: (kinds[name], tensors[name].shape) for name in tensors},
        lambda name: _narrowed(name, exact(tensors[name]), kinds[name]).reshape(tensors[name].shape),
        metadata,
    )


def _kind(tensor: np.ndarray, dtype: str) -> str:
    return "U32" if tensor.dtype == np.uint32 else DTYPES[dtype]


def narrowed(name: str, tensor: np.ndarray, dtype: str) -> np.ndarray:
    """What ``write_safetensors`` makes of a tensor and ``read_safetensors`` finds again: rounded, float32."""
    kind = _kind(tensor, dtype)
    return _widened(_narrowed(name, exact(tensor), kind), kind).reshape(tensor.shape)


def _narrowed(name: str, tensor: np.ndarray, kind: str) -> np.ndarray:
    """float32 rounded to the nearest, ties to even. Raises UserError where something is not finite, or rounded so."""
    if kind == "U32":
        return tensor
    if not np.isfinite(tensor).all():
        raise UserError(
            f"{name} has NaN or infinite values: training diverged, or the sum of base and update overflows"
        )
    if kind == "BF16":
        bits = tensor.view(np.uint32)
        half = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
        if ((half & BF16_INFINITY) == BF16_INFINITY).any():
            raise UserError(f"{name} has values above 3.39e38, which do not fit bfloat16")
        return half
    if kind == "F16":
        with np.errstate(over="ignore"):
            half = tensor.astype(np.float16)
        if not np.isfinite(half).all():
            raise UserError(f"{name} has values above 65,504, which do not fit float16; bfloat16 has room for them")
        return half
    return tensor


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes indented JSON, and its digest beside it."""
    write_with_sums(path.parent, {path.name: (json.dumps(value, indent=2) + "\n").encode()})
