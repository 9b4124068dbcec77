"""The processes of a run, joined by mx.distributed: over a ring, JACCL or MPI, as MLX has them."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import mlx.core as mx
import numpy as np

from mlx_peft.core.errors import UserError
from mlx_peft.core.world import PATIENCE, Lost

_LAUNCHED = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
"""One of these is set in a process that ``mlx.launch`` or ``mpirun`` started."""


_PIECE = 2**28
"""So many bytes of each process are exchanged at once: an array's length is an int32."""


class World:
    """See ``mlx_peft.core.world.World``. Alone where no launcher (``mlx.launch``) says otherwise."""

    def __init__(self) -> None:
        self.rank, self.size = 0, 1
        self._group: mx.distributed.Group | None = None
        if name := next((name for name in _LAUNCHED if name in os.environ), None):
            with lost():
                self._group = mx.distributed.init()
            self.rank, self.size = self._group.rank(), self._group.size()
            if os.environ[name] != str(self.rank):
                raise UserError(
                    f"{name} says that this is process {os.environ[name]} of several, which MLX could not join: start "
                    "them with mlx.launch"
                )

    def sum(self, arrays: Sequence[mx.array]) -> list[mx.array]:
        """The sums of arrays over all processes, in one exchange: the same bits everywhere."""
        if self.size == 1:
            return [*arrays]
        flat = self._sum(mx.concatenate([array.reshape(-1) for array in arrays]))
        ends = np.cumsum([array.size for array in arrays])[:-1].tolist()
        return [part.reshape(array.shape) for part, array in zip(mx.split(flat, ends), arrays, strict=True)]

    def any(self, flag: bool) -> bool:
        return flag if self.size == 1 else bool(self._sum(mx.array(int(flag))).item())

    def tell(self, content: bytes) -> bytes:
        return self._placed(content if self.rank == 0 else b"", 0, 1)[0]

    def gather(self, content: bytes) -> list[bytes]:
        return self._placed(content, self.rank, self.size)

    def _placed(self, content: bytes, place: int, places: int) -> list[bytes]:
        """Each process's bytes in its place, by sums of arrays that are 0 elsewhere: MLX gathers equal lengths."""
        if self.size == 1:
            return [content]
        lengths = np.zeros(places, np.int64)
        lengths[place] = len(content)
        lengths = np.array(self._sum(mx.array(lengths)))
        longest, pieces = max(int(lengths.max()), 1), []
        for first in range(0, longest, _PIECE):
            own = np.frombuffer(content[first : first + _PIECE], np.uint8)
            arrays = np.zeros((places, min(_PIECE, longest - first)), np.uint8)
            arrays[place, : len(own)] = own
            pieces.append(np.array(self._sum(mx.array(arrays))))
        whole = np.concatenate(pieces, axis=1)
        return [array[:length].tobytes() for array, length in zip(whole, lengths.tolist(), strict=True)]

    def _sum(self, array: mx.array) -> mx.array:
        """Over all processes, waited for. On the processor: several rings have failed on Metal (MLX's tracker)."""
        mx.eval(array)  # what fails or takes long in here is not another process's
        with lost(self.rank):
            found = mx.distributed.all_sum(array, group=self._group, stream=mx.cpu)
            mx.eval(found)
        return found


def world() -> World:
    """The processes of which this one is one: they are joined once."""
    return _joined()


@cache
def _joined() -> World:
    return World()


@contextmanager
def lost(rank: int = 0) -> Iterator[None]:
    """Raises Lost where another process does not take part in the block's exchange."""
    # MLX waits for one that hangs for ever, and hears no signal meanwhile.
    watch = threading.Timer(PATIENCE, _give_up, [rank])
    watch.daemon = True
    watch.start()
    try:
        yield
    except RuntimeError as error:
        raise Lost(str(error).splitlines()[0]) from error
    finally:
        watch.cancel()


def _give_up(rank: int) -> None:
    """Ends a process that waits for another one that does not answer; the first one says so."""
    if rank == 0:
        print(f"error: {Lost(f'no answer for {PATIENCE:.0f} s')}", file=sys.stderr, flush=True)
    os._exit(2)
