"""Files of numbers mapped into memory, and what of them need not stay there."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np


def map_bytes(path: Path) -> np.memmap:
    """A file's bytes, uint8 ``(size,)``. They may be written to, and the file does not change."""
    return np.memmap(path, np.uint8, mode="c")


def let_go(raw: np.memmap, begin: int, end: int) -> None:
    """Takes the whole pages between two places out of the process's memory; whoever reads them has them read again.

    For numbers that were widened: otherwise the file is in memory beside them, once half and once whole.
    """
    if isinstance(raw.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        length = end // mmap.PAGESIZE * mmap.PAGESIZE - first
        if length > 0:
            raw.base.madvise(mmap.MADV_DONTNEED, first, length)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """uint16 to float32, of which they are the upper half."""
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)
