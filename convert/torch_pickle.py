"""What a pickle of PyTorch's says of tensors: which part of which storage each is. Nothing of it is ever run.

See ``mlx_peft.config.unpickling``; the names are those of ``torch._utils`` and ``torch.serialization``.
"""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mlx_peft.config.unpickling import OPCODES, Name, Unpickler

STORAGES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "u1",
}
"""What a storage is made of, as NumPy calls it."""

SAVED_WITH = OPCODES | {"BINPERSID", "NEWOBJ", "EMPTY_SET", "ADDITEMS"}
"""What ``torch.save`` writes tensors with, and training code its options."""

MOST_AXES = 32


class Storage(NamedTuple):
    """Numbers in a row, by the key under which the file has them."""

    key: str
    kind: str
    numel: int

    @property
    def dtype(self) -> np.dtype:
        """NumPy's; it has no bfloat16, whose bits are read."""
        return np.dtype("u2" if self.kind == "bfloat16" else self.kind)


@dataclass(frozen=True)
class Part:
    """A tensor: the elements of a storage that lie at offset + sum of index * stride."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it changes a tensor")

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.storage.dtype.itemsize


class Inert:
    """Stands for what training code keeps beside the weights: it takes anything and is not looked at."""

    __slots__ = ()

    def __new__(cls, *arguments: object) -> Inert:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Nothing is kept."""


class Dictionary(dict[Any, Any]):
    """Stands for an ``OrderedDict``, whose attributes (``_metadata``) are not kept."""

    def __setstate__(self, state: object) -> None:
        """Nothing is kept."""


class Kind:
    """Stands for the class of a storage."""

    __slots__ = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it changes a class")


class TensorUnpickler(Unpickler):
    """Makes a Part of each tensor, and notes its storage down in ``storages``."""

    def __init__(self, data: bytes, storages: dict[str, Storage]) -> None:
        super().__init__(data)
        self.storages = storages
        self.names = {
            ("collections", "OrderedDict"): Name(self._dictionary),
            ("torch._utils", "_rebuild_tensor"): Name(_part),
            ("torch._utils", "_rebuild_tensor_v2"): Name(_part),
            ("torch._utils", "_rebuild_parameter"): Name(_parameter),
            ("_codecs", "encode"): Name(self.latin1),
            ("torch", "Size"): Name(lambda shape: shape),
            **{("torch", name): Kind(kind) for name, kind in STORAGES.items()},
            **{("torch", name): Inert for name in ("device", "float16", "float32", "float64", "bfloat16")},
            **dict.fromkeys(HARMLESS, Inert),
        }

    def persistent_load(self, identity: Any) -> Storage:
        kind, storage, key, _, count, *views = identity
        if kind != "storage" or type(storage) is not Kind or not _naturals(count) or any(views):
            raise pickle.UnpicklingError("it has a storage that is not understood")
        self.storages[str(key)] = Storage(str(key), storage.kind, count)
        return self.storages[str(key)]

    def _dictionary(self, items: Any = ()) -> Dictionary:
        self.spend(len(items))
        return Dictionary(items)


HARMLESS = (
    ("argparse", "Namespace"),
    ("__builtin__", "set"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
)
"""Plain values, of which nothing is used: the options of a training run, the best accuracy so far."""


def _part(storage: Any, offset: Any, shape: Any, strides: Any, *_: object) -> Part:
    shape, strides = tuple(shape), tuple(strides)
    if type(storage) is not Storage or len(shape) != len(strides) or len(shape) > MOST_AXES:
        raise pickle.UnpicklingError("it has a tensor that is not understood")
    if not _naturals(offset, *shape, *strides):
        raise pickle.UnpicklingError("it has a tensor of negative size")
    return Part(storage, offset, shape, strides)


def _parameter(tensor: Any, *_: object) -> Any:
    return tensor


def _naturals(*values: Any) -> bool:
    return all(type(value) is int and value >= 0 for value in values)
