"""Reading the pickles that a data set is published in, without ever running what they hold."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

from mlx_peft.config.errors import UserError

_reconstruct = np.empty(0).__reduce__()[0]  # where it lives depends on NumPy's version


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in old protocols: ``_codecs.encode(text, 'latin1')``."""
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("_codecs", "encode"): _latin1,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}; only NumPy arrays and plain containers are read"
            )
        return _ALLOWED[module, name]


def unpickle(data: bytes, name: str) -> Any:
    """Builtin containers, numbers, strings and NumPy arrays out of a pickle, Python 2's included.

    Raises UserError, naming the file, for anything else and for damage; nothing that the pickle names is imported.
    """
    try:
        return _Unpickler(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # damaged pickles raise almost anything
        raise UserError(f"{name}: not a pickle of arrays ({error or type(error).__name__})") from error
