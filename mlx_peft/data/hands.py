"""Who makes the rows of batches: threads of this process, or processes that these ask. The pixels are the same."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_peft.config.data import Data
from mlx_peft.core import cores
from mlx_peft.core.launched import beside
from mlx_peft.data.crew import crew
from mlx_peft.data.filling import Fill, fill
from mlx_peft.data.rows import Rows

MOST = 16
"""So many threads `auto` takes at the most: they read 500 x 375 JPEGs for a few thousand images a second."""


@dataclass(frozen=True)
class Hands:
    """So many threads, each of which has a chunk ``fill``-ed at a time."""

    threads: int
    fill: Fill


def number(wanted: int | str) -> int:
    """``data.threads`` as a number: `auto` is as many as there are cores free, by affinity and control group, shared
    with the other processes of a run."""
    return wanted if isinstance(wanted, int) else max(1, min(MOST, cores.free() // beside()))


def hands(config: Data, rows: Rows, size: tuple[int, int]) -> Hands:
    """Who makes rows of that size (height, width), as a configuration has it.

    ``data.workers: auto`` takes processes where more threads are asked for than Python's lock lets work at once, which
    is ``rows.worth``. Pillow, libjpeg-turbo and the resizer let go of the lock while they compute, so that of the time
    a row takes it is held for a twentieth to a fortieth (``python tests/bench/lock.py IMAGES``): up to a dozen cores
    threads lose nothing, and need no memory twice.

    Raises UserError where processes have no memory to share.
    """
    threads = number(config.threads)
    if config.workers == "processes" or (config.workers == "auto" and threads > rows.worth):
        return Hands(threads, crew(threads, size).fill)
    return Hands(threads, fill)
