"""PyTorch's own files, read without PyTorch: an archive with a pickle in it, or pickles and the storages after them.

What of a file is a tensor is mapped where it lies. The formats are those of ``torch.serialization``.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from convert.mapping import from_bfloat16, let_go, map_bytes
from convert.tensor_file import LONGEST_NAME
from convert.torch_pickle import SAVED_WITH, Part, Storage, TensorUnpickler
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.core.unpickling import ForeignName, check

Order = Literal["<", ">"]
"""The order of a number's bytes: the lowest first, or the highest."""

CONTAINERS = ("model", "state_dict", "teacher", "student", "model_ema", "state_dict_ema", "module")
"""Training code keeps a state dictionary under one of these keys."""

LEGACY = 0x1950A86A20F9469CFC6C
"""The first pickle of a file without an archive, as PyTorch wrote them before 1.6."""

ENTRY = b"PK\x03\x04"
"""An archive begins with this, and so does each entry in it."""

LARGEST_PICKLE = 2**21
"""A file's pickle has at most so many bytes; that of a ViT has some 50,000, with an average of the weights and the
optimiser's state five times as many."""

Places = Mapping[str, tuple[int, int]]
"""The places in the file where a storage's bytes begin and end, by its key."""


def read_pth(path: Path) -> Tensors:
    """The tensors of a state dictionary, out of the containers that may hold it; mapped where they lie in a row.

    Where there are several models (``teacher`` and ``student``), all are read, with their containers in the names.
    Floats of any width become float32, integers are as in the file. What has several names is one array.

    Raises:
        UserError: where the file is damaged, would have run code, is larger inside than outside (compressed, or tensors
            that repeat a few bytes: torch writes neither, and a small file could fill the memory), or holds anything
            else than tensors by name.
    """
    with _refusing(path):
        raw = map_bytes(path)
        state, places, order = _state(path, raw)
        read = {part: _tensor(part, raw, places, order) for part in set(state.values())}
        return {str(name): read[part] for name, part in state.items()}


def describe_pth(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Each tensor's type, in safetensors' words, and shape by name, with no tensor read. Raises as ``read_pth``."""
    with _refusing(path):
        state, _, _ = _state(path, map_bytes(path))
        return {str(name): (part.storage.word, part.shape) for name, part in state.items()}


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Whatever goes wrong is said with the file's name."""
    try:
        yield
    except UserError:
        raise
    except ForeignName as error:
        what = f"the object {error.name}"
        raise UserError(
            f"{path} is a pickle that holds {what}; it was not loaded, and nothing in it was run"
        ) from error
    except Exception as error:  # a damaged pickle raises whatever its garbage leads to
        raise UserError(f"{path}: not a whole PyTorch file: {error or 'it ends too early'}") from error


def _state(path: Path, raw: np.memmap) -> tuple[dict[Any, Part], Places, Order]:
    """The state dictionary of a file, its storages, and the order of their bytes."""
    content, places, order = (_archive if bytes(raw[:4]) == ENTRY else _legacy)(path, raw)
    state = _unwrapped(content)
    if not isinstance(state, dict):
        raise UserError(f"{path} should hold a dictionary of tensors, not {type(state).__name__}")
    if not state:
        raise UserError(f"{path} should hold a dictionary of tensors, and its dictionary is empty")
    if others := sorted(str(name) for name, value in state.items() if type(value) is not Part):
        raise UserError(f"{path}: these entries are not tensors: {', '.join(others[:12])}")
    if long := [name for name in map(str, state) if len(name) > LONGEST_NAME]:
        raise UserError(f"{path}: a tensor's name has {len(long[0]):,} characters, and may have {LONGEST_NAME}")
    if len({str(name) for name in state}) < len(state):
        raise UserError(f"{path}: two tensors have the same name, once as a number and once as text")
    parts = set(state.values())
    if (claimed := sum(part.nbytes for part in parts)) > raw.size:
        raise UserError(
            f"{path} has {raw.size:,} bytes, and its tensors would have {claimed:,}: they repeat a few bytes"
        )
    return state, places, order


def _archive(path: Path, raw: np.memmap) -> tuple[Any, Places, Order]:
    """What an archive's ``data.pkl`` holds, its storages, and the order of their bytes."""
    with zipfile.ZipFile(path) as opened:
        entries = opened.infolist()
    names = [entry.filename for entry in entries]
    if any(name.rpartition("/")[2] == "constants.pkl" for name in names):
        raise UserError(f"{path} is a TorchScript archive: save its state_dict() with torch.save")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise UserError(f"{path} is a compressed archive, which PyTorch does not write")
    if (claimed := sum(entry.file_size for entry in entries)) > raw.size:
        raise UserError(f"{path} is an archive of {raw.size:,} bytes that claims to hold {claimed:,}")
    if len(set(names)) < len(names):
        raise ValueError("two entries have the same name")
    found = {entry.filename: _stored(entry, raw) for entry in entries}
    (folder,) = (name.removesuffix("data.pkl") for name in found if name.rpartition("/")[2] == "data.pkl")
    data = folder + "data/"
    places = {name.removeprefix(data): place for name, place in found.items() if name.startswith(data)}
    begin, end = found.get(folder + "byteorder", (0, 0))
    order: Order = ">" if bytes(raw[begin:end]) == b"big" else "<"
    begin, end = found[folder + "data.pkl"]
    return _load(raw, begin, end)[0], places, order


def _stored(entry: zipfile.ZipInfo, raw: np.memmap) -> tuple[int, int]:
    """Where an entry's bytes begin and end: after its own header, whose names may be longer than the directory's."""
    header = bytes(raw[entry.header_offset : entry.header_offset + 30])
    if len(header) < 30 or header[:4] != ENTRY:
        raise ValueError(f"{entry.filename} is not where the directory says")
    begin = entry.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    if begin + entry.file_size > raw.size:
        raise ValueError(f"{entry.filename} ends after the file")
    return begin, begin + entry.file_size


def _legacy(path: Path, raw: np.memmap) -> tuple[Any, Places, Order]:
    """The same of a file without an archive: a mark, a version, the machine, the content, the keys, the storages.

    A storage is its number of elements, in eight bytes, and their bytes.
    """
    magic, at = _load(raw, 0)
    if magic != LEGACY:
        raise ValueError("a pickle that PyTorch did not write")
    _, at = _load(raw, at)
    machine, at = _load(raw, at)
    storages: dict[str, Storage] = {}
    content, at = _load(raw, at, storages=storages)
    keys, at = _load(raw, at)
    order: Order = "<" if machine["little_endian"] else ">"
    places = {}
    for key in keys:
        begin = at + 8
        at = begin + storages[key].numel * storages[key].dtype.itemsize
        if at > raw.size or int.from_bytes(bytes(raw[begin - 8 : begin]), "little") != storages[key].numel:
            raise ValueError(f"the storage {key} is not whole")
        places[key] = begin, at
    return content, places, order


def _load(raw: np.memmap, begin: int, end: int | None = None, storages: dict[str, Storage] | None = None) -> Any:
    """What the pickle holds that begins there, and where it ends; the storages that it names are noted down."""
    if (end or 0) - begin > LARGEST_PICKLE:
        raise pickle.UnpicklingError(f"its list of tensors has {(end or 0) - begin:,} bytes")
    data = bytes(raw[begin : min(end or raw.size, begin + LARGEST_PICKLE)])
    length = check(data, SAVED_WITH)
    unpickler = TensorUnpickler(data[:length], {} if storages is None else storages)
    return unpickler.load(), begin + length


def _tensor(part: Part, raw: np.memmap, places: Places, order: Order) -> np.ndarray:
    """A part of a storage: a view of the file where it is float32, in a row, or of integers."""
    storage, dtype = part.storage, part.storage.dtype
    begin, end = places[storage.key]
    last = part.offset + sum((n - 1) * stride for n, stride in zip(part.shape, part.strides, strict=True))
    if storage.numel * dtype.itemsize > end - begin or (0 not in part.shape and last >= storage.numel):
        raise ValueError(f"the storage {storage.key} is too small for what is read from it")
    if 0 in part.shape:
        return np.zeros(part.shape, np.float32)
    values = raw[begin : begin + storage.numel * dtype.itemsize].view(np.ndarray).view(dtype.newbyteorder(order))
    strides = [stride * dtype.itemsize for stride in part.strides]
    tensor = np.lib.stride_tricks.as_strided(values[part.offset :], part.shape, strides)
    if storage.kind == "bfloat16":
        tensor = from_bfloat16(tensor)
    elif dtype.kind == "f":
        tensor = np.require(tensor, np.float32, ["A", "C"])
    if not np.may_share_memory(tensor, values):
        let_go(raw, begin, end)
    return tensor


def _unwrapped(content: Any, depth: int = 4) -> Any:
    """The state dictionary inside of what training code keeps around it; of several, one with all their tensors.

    Where no container has a known name, every dictionary of tensors is one.
    """
    if not isinstance(content, dict) or not depth:
        return content
    found = [name for name in CONTAINERS if isinstance(content.get(name), dict)]
    if not found and not any(type(value) is Part for value in content.values()):
        found = [str(name) for name, inner in content.items() if type(name) is str and _is_state(inner)]
    if not found:
        return content
    inner = {name: _unwrapped(content[name], depth - 1) for name in found}
    if len(inner) == 1:
        return inner[found[0]]
    return {f"{name}.{key}": value for name, state in inner.items() for key, value in state.items()}


def _is_state(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(type(inner) is Part for inner in value.values())
