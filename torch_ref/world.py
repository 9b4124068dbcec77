"""The processes of a run, joined by torch.distributed: NCCL sums on GPUs, gloo on CPUs and for all else."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor

from mlx_peft.core.launched import launched
from mlx_peft.core.world import PATIENCE, Lost
from torch_ref.device import device


class World:
    """See ``mlx_peft.core.world.World``. Alone where no launcher (``torchrun``) says otherwise."""

    def __init__(self) -> None:
        self.rank, self.size = launched()
        self._host: dist.ProcessGroup | None = None
        if self.size > 1:
            self._join()

    def _join(self) -> None:
        kind, patience = "nccl" if device().type == "cuda" else "gloo", timedelta(seconds=PATIENCE)
        with lost():
            store, rank, size = next(dist.rendezvous("env://", timeout=patience))
            # Processes that torchrun starts again would read the addresses of those that have ended.
            life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            dist.init_process_group(
                kind, store=dist.PrefixStore(life, store), rank=rank, world_size=size, timeout=patience
            )
            self._host = dist.new_group(backend="gloo", timeout=patience)

    def sum(self, arrays: Sequence[Tensor]) -> list[Tensor]:
        """The sums of arrays over all processes, in one exchange: the same bits everywhere."""
        if self.size == 1:
            return [*arrays]
        flat = torch.cat([array.reshape(-1) for array in arrays])
        with lost():
            dist.all_reduce(flat)
        parts = flat.split([array.numel() for array in arrays])
        return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]

    def any(self, flag: bool) -> bool:
        if self.size == 1:
            return flag
        found = torch.tensor(int(flag))
        with lost():
            dist.all_reduce(found, group=self._host)
        return bool(found)

    def tell(self, content: bytes) -> bytes:
        if self.size == 1:
            return content
        length = torch.tensor(len(content))
        with lost():
            dist.broadcast(length, 0, group=self._host)
            array = _as_array(content) if self.rank == 0 else torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(array, 0, group=self._host)
        return array.numpy().tobytes()

    def gather(self, content: bytes) -> list[bytes]:
        if self.size == 1:
            return [content]
        lengths = [torch.empty(1, dtype=torch.int64) for _ in range(self.size)]
        with lost():
            dist.all_gather(lengths, torch.tensor([len(content)]), group=self._host)
            longest = max(1, *(int(length) for length in lengths))
            arrays = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(arrays, _as_array(content.ljust(longest, b"\0")), group=self._host)
        return [array[: int(length)].numpy().tobytes() for array, length in zip(arrays, lengths, strict=True)]


def _as_array(content: bytes) -> Tensor:
    """Its bytes, uint8 ``(length,)``."""
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)


def world() -> World:
    """The processes of which this one is one: they are joined once."""
    return _joined()


@cache
def _joined() -> World:
    return World()


@contextmanager
def lost() -> Iterator[None]:
    """Raises Lost where another process does not take part in the block's exchange."""
    try:
        yield
    except RuntimeError as error:
        raise Lost(str(error).splitlines()[0]) from error
