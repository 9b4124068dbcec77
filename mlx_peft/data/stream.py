"""Any number of images decoded by threads, a few parts ahead of whoever looks at them; the others are in no memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

import numpy as np

from mlx_peft.core import cores
from mlx_peft.core.errors import UserError
from mlx_peft.data.ahead import PREFETCH
from mlx_peft.data.filling import CHUNK
from mlx_peft.data.memory import one_image

One = TypeVar("One")


class Pause(Enum):
    """``PAUSE`` among what is asked for: nothing more is there just now, so what is there need not wait for it."""

    PAUSE = 0


PAUSE = Pause.PAUSE


@dataclass(frozen=True, eq=False)
class Part(Generic[One]):
    """Some of the images, in their order.

    Attributes:
        asked: what was asked for, one an image.
        images: uint8 ``(len(asked), size, size, 3)``, zero where there is an error.
        errors: why an image cannot be read, one an image; None where it can.
    """

    asked: Sequence[One]
    images: np.ndarray
    errors: Sequence[str | None]


def decoded(
    asked: Iterable[One | Pause], read: Callable[[One], np.ndarray], size: int, count: int, threads: int | None = None
) -> Generator[Part[One], None, None]:
    """Images in parts of so many; the last of them, and the last before a pause, may be smaller.

    However the consumer leaves, the threads end when the iterator is closed, once each has done what it is doing.

    Args:
        asked: what stands for each image; taken as it is needed, by the thread that asks for the parts.
        read: makes uint8 ``(size, size, 3)`` of it, in any thread. Its UserError is kept, and the others go on.
        size: pixels.
        count: images of a part.
        threads: None: as many as there are processors free.
    """
    parts, paused = _parts(asked, count), False
    pool = ThreadPoolExecutor(threads or cores.free(), thread_name_prefix="mlx-peft-data")

    def fill(part: Sequence[One], out: np.ndarray) -> list[str | None]:
        return [_put(read, one, place) for one, place in zip(part, out, strict=True)]

    def submit(part: Sequence[One]) -> tuple[Sequence[One], np.ndarray, list[Future[list[str | None]]]]:
        images = np.zeros((len(part), size, size, 3), np.uint8)
        chunks = [slice(first, first + CHUNK) for first in range(0, len(part), CHUNK)]
        return part, images, [pool.submit(fill, part[chunk], images[chunk]) for chunk in chunks]

    pending: deque[tuple[Sequence[One], np.ndarray, list[Future[list[str | None]]]]] = deque()
    try:
        while True:
            while len(pending) <= PREFETCH and not (paused and pending) and (part := next(parts, None)) is not None:
                paused = not part
                if part:
                    pending.append(submit(part))
            if not pending:
                return
            taken, images, futures = pending.popleft()
            yield Part(taken, images, [error for future in futures for error in future.result()])
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # not waited for: see data.ahead


def _parts(asked: Iterable[One | Pause], count: int) -> Iterator[list[One]]:
    """So many at a time, and fewer before a pause, which is an empty one."""
    part: list[One] = []
    for one in asked:
        if not isinstance(one, Pause):
            part.append(one)
        if part and (len(part) == count or isinstance(one, Pause)):
            yield part
            part = []
        if isinstance(one, Pause):
            yield []
    if part:
        yield part


def _put(read: Callable[[One], np.ndarray], one: One, place: np.ndarray) -> str | None:
    """Fills a place with an image. Returns why it cannot be read; None where it can."""
    try:
        with one_image():
            place[...] = read(one)
    except UserError as error:
        return str(error)
    return None
