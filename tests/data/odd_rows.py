"""Rows that something is wrong with; a process that makes them imports this module."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass

import numpy as np

from mlx_peft.data import Images, memory

SIDE = 8
OWN, ALL = 2**20, 2**29
"""Bytes that a process needs not ask for, and more than it is given at once."""


@dataclass(frozen=True)
class Odd:
    """A row whose levels are the number of its image; of the image ``at`` it is ``what``."""

    what: str
    at: int

    @property
    def worth(self) -> int:
        return 1

    def size(self, images: Images) -> tuple[int, int]:
        return SIDE, SIDE

    def row(self, images: Images, place: int, index: int, copy: int) -> np.ndarray:
        if index == self.at:
            getattr(self, self.what)()
        return np.full((SIDE, SIDE, 3), index % 256, np.uint8)

    def killed(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def wrong(self) -> None:
        raise ZeroDivisionError("no such thing")

    def talkative(self) -> None:
        print("printed", flush=True)
        os.write(1, b"written\n")

    def left(self) -> None:
        sys.exit(3)

    def hungry(self) -> None:
        """As of two images, the second of which takes the place of the first."""
        for size in (OWN, ALL):
            with memory.budget().decoding(size, size):
                pass
