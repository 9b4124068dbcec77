"""How many threads a command computes with, and how they wait: settled before what computes is loaded.

OpenMP (PyTorch) and OpenBLAS (MLX, NumPy) read the environment once, when they are loaded. Left alone they take every
processor of the machine, whatever a container may use of it; and between two products OpenMP's threads spin, so that
beside another busy process each waits for one that has no processor. Threads that sleep instead have to be woken, which
a small product is not worth: it is left to fewer.

Commands settle it, for their process and those that they start, and never over what a user has set. The library does
not: a notebook's threads are its owner's.
"""

from __future__ import annotations

import math
import os
import sys

from mlx_peft.core import cores

NUMBER = "OMP_NUM_THREADS"
"""OpenBLAS and MKL take it too, where nothing of their own is set."""

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Whoever sets one of these has said how threads wait."""

SETTLED = "MLX_PEFT_SETTLED"
"""Names the variables that were settled here: a process that was started by a command may settle them anew."""

WORTH = 3e7
"""Operations of one product that are worth a thread: 0.3 ms, of which waking it takes a third. Measured with PyTorch's
steps on two cores: with fewer operations one thread is the faster, with twice as many two are."""


def settle() -> None:
    """Has what is loaded from now on compute with a thread for each free core, and wait asleep.

    On Linux alone: elsewhere the libraries' own choice was not measured.
    """
    if sys.platform != "linux":
        return
    ours = _settled()
    wanted = {} if NUMBER in os.environ and NUMBER not in ours else {NUMBER: str(cores.whole())}
    if not any(name in os.environ and name not in ours for name in WAITING):
        wanted[WAITING[0]] = "PASSIVE"
    os.environ.update(wanted | {SETTLED: " ".join(wanted)})


def at_most(number: int) -> None:
    """Leaves no more than so many threads of those that were settled: all that the work at hand keeps busy."""
    if NUMBER in _settled():
        os.environ[NUMBER] = str(min(number, int(os.environ[NUMBER])))


def shared(processes: int) -> dict[str, str]:
    """The environment for each of so many processes that compute at once: its share of the threads, where a user has
    not set their number."""
    if sys.platform != "linux" or (NUMBER in os.environ and NUMBER not in _settled()):
        return dict(os.environ)
    settled = [name for name in _settled() if name != NUMBER]  # else the process would take every core again
    share = max(1, cores.whole() // processes)
    return {**os.environ, NUMBER: str(share), SETTLED: " ".join(settled)}


def worth(rows: int, width: int) -> int:
    """As many threads as the product of a layer, ``(rows, width)`` by ``(width, width)``, keeps busy."""
    return max(1, math.ceil(2 * rows * width * width / WORTH))


def told() -> dict[str, str]:
    """What a user has set of threads in the environment."""
    ours = _settled()
    return {name: value for name, value in facts().items() if name in os.environ and name not in ours}


def facts() -> dict[str, str]:
    """What the environment says of threads, for a record of where something was computed."""
    names = (NUMBER, *WAITING, "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {"free_cores": str(cores.free())} | {name: os.environ[name] for name in names if name in os.environ}


def _settled() -> list[str]:
    return os.environ.get(SETTLED, "").split()
