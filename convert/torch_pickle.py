"""What a pickle of PyTorch's says of tensors: which part of which storage each is. Nothing of it is ever run.

See ``mlx_peft.core.unpickling``; the names are those of ``torch._utils`` and ``torch.serialization``.
"""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mlx_peft.core.unpickling import OPCODES, Name, Unpickler, plain_key

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
"""The type of a storage's numbers, as NumPy calls it."""

SAVED_WITH = OPCODES | {"BINPERSID", "NEWOBJ", "EMPTY_SET", "ADDITEMS", "FROZENSET", "BYTEARRAY8"}
"""``torch.save`` writes tensors with these opcodes, and training code its options."""

MOST_AXES, LONGEST = 32, 2**48
"""A tensor has at most so many axes, each of at most so many elements: no file has as many. (Numbers below 2^61 - 1
have different hashes.)"""


class Storage(NamedTuple):
    """Numbers in a row, by the key under which the file has them."""

    key: str
    kind: str
    numel: int

    @property
    def dtype(self) -> np.dtype:
        """NumPy's; it has no bfloat16, whose bits are read."""
        return np.dtype("u2" if self.kind == "bfloat16" else self.kind)

    @property
    def word(self) -> str:
        """Its type in safetensors' words: ``F32``."""
        return "BF16" if self.kind == "bfloat16" else f"{self.kind[0].upper()}{8 * int(self.kind[1])}"


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

    def __setitem__(self, key: object, value: object) -> None:
        """Nothing is kept."""

    def extend(self, values: object) -> None:
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
            ("collections", "defaultdict"): Name(lambda *_: Dictionary()),
            ("torch._utils", "_rebuild_tensor"): Name(_part),
            ("torch._utils", "_rebuild_tensor_v2"): Name(_part),
            ("torch._utils", "_rebuild_parameter"): Name(_parameter),
            ("torch._utils", "_rebuild_parameter_with_state"): Name(_parameter),
            ("torch._tensor", "_rebuild_from_type_v2"): Name(_of_type),
            ("_codecs", "encode"): Name(self.latin1),
            ("torch", "Size"): Name(lambda shape: shape),
            **{("torch", name): Kind(kind) for name, kind in STORAGES.items()},
            **{(module, name): Inert for module, names in HARMLESS.items() for name in names.split()},
        }

    def persistent_load(self, identity: Any) -> Storage:
        kind, storage, key, _, count, *views = identity
        if kind != "storage" or type(storage) is not Kind or not _naturals(count) or any(views):
            raise pickle.UnpicklingError("it has a storage that is not understood")
        self.storages[str(key)] = Storage(str(key), storage.kind, count)
        return self.storages[str(key)]

    def _dictionary(self, items: Any = ()) -> Dictionary:
        self.spend(len(items))
        return Dictionary((plain_key(key), value) for key, value in items)


HARMLESS = {
    "argparse": "Namespace",
    "types": "SimpleNamespace",
    "__builtin__": "set frozenset bytearray complex list dict tuple int float str bool slice range xrange",
    "builtins": "set frozenset bytearray complex list dict tuple int float str bool slice range",
    "collections": "Counter deque",
    "datetime": "date datetime time timedelta timezone",
    "pathlib": "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
    "pathlib._local": "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
    "numpy": "ndarray dtype",
    "numpy.core.multiarray": "scalar _reconstruct",
    "numpy._core.multiarray": "scalar _reconstruct",
    "torch": "device Tensor strided bool uint8 int8 int16 int32 int64 float16 float32 float64 bfloat16",
    "torch.serialization": "_get_layout",
    "torch.nn.parameter": "Parameter Buffer",
    "torch.torch_version": "TorchVersion",
}
"""Plain values by their modules; nothing of them is used: a run's options, the best accuracy so far, random states."""


def _part(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any = False, hooks: Any = None, marks: Any = None
) -> Part:
    shape, strides = tuple(shape), tuple(strides)
    if type(storage) is not Storage or len(shape) != len(strides) or len(shape) > MOST_AXES or marks:
        raise pickle.UnpicklingError("it has a tensor that is not understood")
    if not _naturals(offset, *shape, *strides):
        raise pickle.UnpicklingError("it has a tensor of negative or of boundless size")
    return Part(storage, offset, shape, strides)


def _of_type(rebuild: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """A tensor with attributes, which are not kept."""
    if type(rebuild) is not Name:
        raise pickle.UnpicklingError("it has a tensor that is not understood")
    return rebuild(*arguments)


def _parameter(tensor: Any, *_: object) -> Any:
    return tensor


def _naturals(*values: Any) -> bool:
    return all(type(value) is int and 0 <= value < LONGEST for value in values)
