"""Reading the pickles that a data set is published in, without ever running what they hold.

A name that a pickle asks for never becomes the thing that it names, only a stand-in of this module's, which does
nothing but note a plain array down. No constructor of NumPy's is called with what the file says: one that took raw
bytes for objects would be a way into the memory of the process.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from mlx_peft.config.errors import UserError

OPCODES = frozenset(
    {"PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"}
    | {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET", "NONE", "NEWTRUE", "NEWFALSE"}
    | {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
    | {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"}
    | {"BINBYTES", "SHORT_BINBYTES", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
    | {"EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"}
)
"""What plain containers and arrays are written with: no classes, extensions, persistent names, sets or buffers."""

_PUT = ("PUT", "BINPUT", "LONG_BINPUT")
_KIND = re.compile(r"b1|[iu][1248]|f[248]|c8|c16|S[1-9]\d{0,5}")
"""Types of numbers, truth values and bytes; no objects, nothing structured."""


class _Name:
    """Stands for a name. It can be called, where the thing can, and nothing else."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any] | None = None) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        if self._call is None:
            raise pickle.UnpicklingError("it calls what is no function here")
        return self._call(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it changes a function")


class _Type:
    """A NumPy type, as it is pickled: its code, then its byte order."""

    __slots__ = ("dtype",)

    def __init__(self, code: object, align: object = False, copy: object = False) -> None:
        if isinstance(code, bytes):
            code = code.decode("latin1")
        if not isinstance(code, str) or not _KIND.fullmatch(code):
            raise pickle.UnpicklingError(f"it has an array of {str(code)[:40]!r}; only numbers and bytes are read")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, subarray, names, fields = state[:5]
        if isinstance(order, bytes):
            order = order.decode("latin1")
        if (subarray, names, fields) != (None, None, None) or order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("it has an array of a structured type")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """An array, as it is pickled: first empty, then its shape, type and bytes."""

    __slots__ = ("_spend", "array")

    def __init__(self, spend: Callable[[int], None]) -> None:
        self._spend = spend
        self.array: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, data = state
        if isinstance(data, str):  # bytes of Python 2's
            self._spend(len(data))
            data = data.encode("latin1")
        if type(kind) is not _Type or type(data) is not bytes or not all(type(n) is int and n >= 0 for n in shape):
            raise pickle.UnpicklingError("it has an array of something else than a shape, a type and bytes")
        if math.prod(shape) * kind.dtype.itemsize != len(data):
            raise pickle.UnpicklingError(f"it has an array of shape {shape} in {len(data)} bytes")
        order: Any = "F" if fortran else "C"
        self.array = np.frombuffer(data, kind.dtype).reshape(shape, order=order)


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        self._left = 2 * len(data)
        self._ndarray = _Name()
        reconstruct, dtype = _Name(self._reconstruct), _Name(_Type)
        self._names = {
            ("numpy", "ndarray"): self._ndarray,
            ("numpy", "dtype"): dtype,
            ("numpy.core.multiarray", "_reconstruct"): reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): reconstruct,
            ("_codecs", "encode"): _Name(self._latin1),
        }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._names:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}; only NumPy arrays and plain containers are read"
            )
        return self._names[module, name]

    def _reconstruct(self, kind: object, shape: object, code: object) -> _Array:
        if kind is not self._ndarray or shape != (0,) or code not in (b"b", "b"):
            raise pickle.UnpicklingError("it has an array that is not NumPy's plain one")
        return _Array(self._spend)

    def _latin1(self, text: str, encoding: str) -> bytes:
        """How Python 3 writes bytes in old protocols: ``_codecs.encode(text, 'latin1')``."""
        self._spend(len(text))
        return text.encode("latin1")

    def _spend(self, size: int) -> None:
        """One long text, named again and again, must not become many times its bytes."""
        self._left -= size
        if self._left < 0:
            raise pickle.UnpicklingError("it makes more bytes than it has")


def unpickle(data: bytes, name: str) -> Any:
    """Builtin containers, numbers, strings, bytes and NumPy arrays out of a pickle, Python 2's included.

    Raises UserError, naming the file, for anything else and for damage; nothing that the pickle names is imported or
    called. Arrays are read-only.
    """
    try:
        _check(data)
        return _plain(_Unpickler(data).load(), {})
    except Exception as error:  # damaged pickles raise almost anything
        raise UserError(f"{name}: not a pickle of arrays ({error or type(error).__name__})") from error


def _check(data: bytes) -> None:
    """Refuses what is not needed to write an array, and places in the memo that would have to be made room for."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name not in OPCODES:
            raise pickle.UnpicklingError(f"it uses {opcode.name}; only NumPy arrays and plain containers are read")
        if opcode.name in _PUT and not 0 <= int(argument or 0) <= len(data):
            raise pickle.UnpicklingError(f"it numbers its values up to {argument}, in {len(data)} bytes")


def _plain(value: Any, done: dict[int, Any]) -> Any:
    """The same, with arrays for what stands for them; what is there twice is made once."""
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if id(value) not in done:
        if type(value) is _Array and value.array is not None:
            done[id(value)] = value.array
        elif type(value) in (list, tuple):
            done[id(value)] = type(value)(_plain(item, done) for item in value)
        elif type(value) is dict and all(type(key) in (int, str, bytes) for key in value):
            done[id(value)] = {key: _plain(item, done) for key, item in value.items()}
        else:
            raise pickle.UnpicklingError("it has something else than NumPy arrays and plain containers")
    return done[id(value)]
