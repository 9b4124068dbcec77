"""Arrays out of MATLAB's files: numeric, of an expected shape, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mlx_peft.core.errors import UserError

MAX_BYTES = 2**31
"""A file has at most so many bytes, and so has what is read from it: SVHN's largest array has 225 MB."""


NUMBERS = {
    **{f"{sign}int{bits}": bits // 8 for sign in ("", "u") for bits in (8, 16, 32, 64)},
    "single": 4,
    "double": 8,
}
"""MATLAB's kinds of numbers, and the bytes of one."""


def read_arrays(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Integer arrays of a MATLAB file (5 to 7.2) by name, as they are stored.

    Only these are unpacked, and only after their header has said that they are numbers and how many. Raises UserError,
    naming the file, where it is missing, damaged, in version 7.3 (HDF5), or lacks one.
    """
    from scipy.io import loadmat, whosmat

    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: larger than {MAX_BYTES // 2**20} MiB")
        heads = {name: (shape, kind) for name, shape, kind in whosmat(path)}
        for name in names:
            if name not in heads:
                raise UserError(f"{path}: no array {name!r}; there is {', '.join(map(repr, heads)) or 'nothing'}")
            shape, kind = heads[name]
            bytes_each = NUMBERS.get(kind)
            if bytes_each is None or any(side < 0 for side in shape) or _product(shape) * bytes_each > MAX_BYTES:
                raise UserError(f"{path}: {name!r} is {kind} {shape}, not an array of whole numbers")
        found = loadmat(path, variable_names=names)
        arrays = {name: np.asarray(found[name]) for name in names}
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UserError:
        raise
    except Exception as error:  # scipy's parser raises almost anything on damaged bytes
        raise UserError(f"{path}: not a readable MATLAB file ({error or type(error).__name__})") from error
    for name, array in arrays.items():
        if array.dtype.kind not in "iuf" or (array.dtype.kind == "f" and not np.array_equal(array, np.rint(array))):
            raise UserError(f"{path}: {name!r} does not hold whole numbers")
    return arrays


def _product(shape: tuple[int, ...]) -> int:
    """In Python's integers, which do not overflow."""
    product = 1
    for side in shape:
        product *= int(side)
    return product
