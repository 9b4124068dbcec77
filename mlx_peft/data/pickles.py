"""Reading the pickles that a data set is published in, without ever running what they hold.

What stands for NumPy's names does nothing but note a plain array down. No constructor of NumPy's is called with what
the file says: one that took raw bytes for objects would be a way into the memory of the process.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from mlx_peft.core.errors import UserError
from mlx_peft.core.unpickling import ForeignName, Name, Unpickler, check

_KIND = re.compile(r"b1|[iu][1248]|f[248]|c8|c16|S[1-9]\d{0,5}")
"""The types of numbers, truth values and bytes; no objects, nothing structured."""


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


class _Unpickler(Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._ndarray = Name()
        reconstruct, dtype = Name(self._reconstruct), Name(_Type)
        self.names = {
            ("numpy", "ndarray"): self._ndarray,
            ("numpy", "dtype"): dtype,
            ("numpy.core.multiarray", "_reconstruct"): reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): reconstruct,
            ("_codecs", "encode"): Name(self.latin1),
        }

    def _reconstruct(self, kind: object, shape: object, code: object) -> _Array:
        if kind is not self._ndarray or shape != (0,) or code not in (b"b", "b"):
            raise pickle.UnpicklingError("it has an array that is not NumPy's plain one")
        return _Array(self.spend)


def unpickle(data: bytes, name: str) -> Any:
    """Builtin containers, numbers, strings, bytes and NumPy arrays out of a pickle, Python 2's included.

    Raises UserError, naming the file, for anything else and for damage; nothing that the pickle names is imported or
    called. Arrays are read-only.
    """
    try:
        check(data)
        return _plain(_Unpickler(data).load(), {})
    except ForeignName as error:
        raise UserError(f"{name}: not a pickle of arrays ({error}; they and plain containers are read)") from error
    except Exception as error:  # damaged pickles raise almost anything
        raise UserError(f"{name}: not a pickle of arrays ({error or type(error).__name__})") from error


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
