"""Parts of a batch beside one another on a CPU's cores, where else all would wait for one another at each product.

torch divides each operation among its threads. Of a small array, or of a product with few columns, each has so little
to do that waking the others takes as long. Images know nothing of one another: each core takes some of them through the
whole network, and back in a training step, whose gradients are sums over images; and waits for nobody.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch

from mlx_peft.core.batches import slices
from mlx_peft.vit.architecture import Architecture

Result = TypeVar("Result")

Rows = tuple[int, int]
"""How many images go through a network at once in a thread: at most, and at least for that it is worth a thread."""

LEAST, MOST = 1 << 19, 16 << 20
"""Bytes of the widest layer's outputs that such a thread computes at once, about. More do not stay in a cache until
the next layer reads them."""

_pools: dict[int, ThreadPoolExecutor] = {}
_making = threading.Lock()
os.register_at_fork(after_in_child=_pools.clear)  # which does not have their threads


def rows_at_once(architecture: Architecture) -> Rows:
    """How many images have about ``MOST`` bytes of outputs in a block's widest layer, and ``LEAST``; one at least."""
    image = architecture.widest_outputs * torch.float32.itemsize
    return max(MOST // image, 1), max(LEAST // image, 1)


def answered(compute: Callable[[slice], np.ndarray], count: int, rows: Rows | None, divided: bool = True) -> np.ndarray:
    """What a function gives of so many images, which it is asked in parts; None: at once.

    Neither ``inference_mode`` nor what else torch knows for a thread goes along.

    Args:
        divided: whether torch divides each operation among all threads where there are fewer parts than those.
            Otherwise a thread computes a part alone, as it pays where most operations are small.
    """
    if rows is None:
        return compute(slice(None))
    own = parts(count, rows, divided)
    return compute(own[0]) if divided and len(own) == 1 else np.concatenate(beside(compute, own, divided))


def parts(count: int, rows: Rows, divided: bool = True) -> list[slice]:
    """As many of so many images for each thread, where these are enough; else as many as go through at once, or where
    nothing is ``divided``, enough for each of fewer threads."""
    threads, (most, least) = torch.get_num_threads(), rows
    if not divided:
        threads = max(min(threads, count // least), 1)
    each = -(-count // (threads * -(-count // (threads * most)))) if count else 0
    return [*slices(count, each if each >= least else most)] or [slice(0, 0)]


def shares(count: int, rows: Rows | None) -> list[slice]:
    """So many images, as many for each thread, where these are enough; else all of them, as where rows is None."""
    each = -(-count // torch.get_num_threads())
    return [slice(0, count)] if rows is None or each < rows[1] else [*slices(count, each)]


def beside(compute: Callable[[slice], Result], own: Sequence[slice], divided: bool = True) -> list[Result]:
    """What a function gives of each part, in order: with a thread each, if there are parts for all or nothing is
    ``divided``, and else in turn, each with all threads."""
    threads = torch.get_num_threads()
    if threads == 1 or (divided and len(own) < threads):
        return [compute(part) for part in own]
    return [*_pool(threads).map(compute, own)]


def _pool(threads: int) -> ThreadPoolExecutor:
    """So many threads, in each of which torch computes alone."""
    with _making:
        if threads not in _pools:
            pool, begun = ThreadPoolExecutor(threads, "rows", _alone), threading.Barrier(threads)
            for _ in pool.map(lambda _: begun.wait(), range(threads)):  # each of them waits, so that all are made
                pass
            torch.set_num_threads(threads)  # the last that was set is what threads begin with that come later
            _pools[threads] = pool
        return _pools[threads]


def _alone() -> None:
    """Has torch compute in this thread without any other."""
    torch.get_num_threads()  # whoever asks first gives a thread the number that was set last, by whichever thread
    torch.set_num_threads(1)
