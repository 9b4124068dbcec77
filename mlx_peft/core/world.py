"""The processes that train one model together: each has its rows of every batch, and the first one writes.

A launcher starts them (``torchrun``, ``mlx.launch``), a backend joins them (``Backend.world``). How many there are is
no part of what a run is: a global batch has the same images in the same order, whoever computes which of its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from safetensors.numpy import load, save

from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.core.launched import Lost as Lost  # as a name of this module too

Item = TypeVar("Item")

PATIENCE = 600.0
"""Seconds that a process waits for the others, of which one may be writing a checkpoint."""


class World(Protocol):
    """The processes of a run, as each of them sees it. What is called here, all of them call, in the same order."""

    @property
    def rank(self) -> int:
        """Which of them this one is, from 0 on. The first one writes, and speaks."""
        ...

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def any(self, flag: bool) -> bool:
        """Whether one of them says so. Raises Lost where one has ended or does not answer."""
        ...

    def tell(self, content: bytes) -> bytes:
        """What the first one says, whatever the others say. Raises Lost."""
        ...

    def gather(self, content: bytes) -> list[bytes]:
        """What each of them says, by rank. Raises Lost."""
        ...


@dataclass(frozen=True)
class Alone:
    """The world of one process."""

    rank: int = 0
    size: int = 1

    def any(self, flag: bool) -> bool:
        return flag

    def tell(self, content: bytes) -> bytes:
        return content

    def gather(self, content: bytes) -> list[bytes]:
        return [content]


ALONE = Alone()


def rows_of(world: World, batch: int, parts: int) -> list[slice]:
    """Which rows of a batch a process computes: a run of each part. The batch is a multiple of parts and processes."""
    length, rest = divmod(batch, parts * world.size)
    assert not rest
    firsts = ((part * world.size + world.rank) * length for part in range(parts))
    return [slice(first, first + length) for first in firsts]


@contextmanager
def together(world: World) -> Iterator[None]:
    """All processes come to the end of the block, or none goes on.

    Raises the first one's UserError, or another's with its rank; where that is told by the first one, SystemExit.
    """
    fault: UserError | None = None
    try:
        yield
    except Lost:
        raise
    except UserError as error:
        if world.size == 1:
            raise
        fault = error
    # Escaped, since the name of a file may be no UTF-8.
    own = b"" if fault is None else str(fault).encode(errors="backslashreplace") or b"?"
    texts = [text.decode() for text in world.gather(own)]
    wrong = [(rank, text) for rank, text in enumerate(texts) if text]
    if not wrong:
        return
    if world.rank:
        raise SystemExit(2)
    if fault is not None:
        raise fault
    raise UserError(f"rank {wrong[0][0]} of {world.size}: {wrong[0][1]}")


@contextmanager
def first_tells(world: World, *kinds: type[UserError]) -> Iterator[None]:
    """Errors of these kinds all processes have alike: the first one raises them, the others SystemExit."""
    try:
        yield
    except UserError as error:
        if world.rank and isinstance(error, (Lost, *kinds)):
            raise SystemExit(2) from None
        raise


def packed(tensors: Tensors) -> bytes:
    """Tensors as the bytes of a safetensors file, whatever order their memory has: the library takes it as it lies."""
    return save({name: np.asarray(tensor, order="C") for name, tensor in tensors.items()})


def shared(
    world: World,
    items: Iterable[Item],
    count: int,
    compute: Callable[[Item], Tensors | None],
    check: Callable[[], None] = lambda: None,
) -> Iterator[Tensors]:
    """What is computed of ``count`` items, in their order, by all: ``items`` are a process's own, every size-th.

    None where nothing comes of an item. All call ``check`` before each round of items, and raise what ``together``
    raises.
    """
    own = iter(items)
    for first in range(0, count, world.size):
        check()
        found = None
        with together(world):
            if first + world.rank < count:
                found = compute(next(own))
        if world.size == 1:
            contents = [found]
        else:
            contents = [load(content) if content else None for content in world.gather(packed(found) if found else b"")]
        yield from (content for content in contents if content is not None)
    next(own, None)  # lets it end
