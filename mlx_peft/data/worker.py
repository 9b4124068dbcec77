"""The process that makes rows for another: chunks come in on its standard input, and pixels go out through memory that
both have.

It knows nothing of the set but what a chunk brings along, and imports nothing but what makes rows. It ends when its
input does, so that it outlives its owner by no more than the chunk at hand, however that one ended; and when nobody
wants anything of it for a while.
"""

from __future__ import annotations

import mmap
import os
import pickle
import select
import traceback
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from typing import Any, BinaryIO

import numpy as np

from mlx_peft.core.errors import UserError
from mlx_peft.data import memory
from mlx_peft.data.filling import Chunk, fill

MADE, REFUSED, FAILED, TAKE, GIVE = "made", "refused", "failed", "take", "give"
"""What it says: the reasons of a chunk's rows; a UserError in their place; any other error, and where it was raised;
and, on the way, that it takes so many bytes to decode an image, which it waits to be allowed, or gives them back."""


class Lent(memory.Budget):
    """The budget of one that decodes for another: so many bytes are its own, and for more than that it asks.

    total: the most that is given to it. ask: returns once so many bytes are its own; give: they no longer are.
    """

    def __init__(self, own: int, total: int, ask: Callable[[int], None], give: Callable[[int], None]) -> None:
        super().__init__(total)
        self._own, self._ask, self._give = own, ask, give
        self._lent = 0

    def take(self, share: int) -> None:
        if share > self._own:
            self._ask(share)
            self._lent += share

    def give_back(self, share: int) -> None:
        if share := min(share, self._lent):
            self._lent -= share
            self._give(share)


def serve(shared: int, own: int, total: int, idle: int) -> None:
    """Answers until its input ends, or nothing has been asked for so many seconds.

    shared: the descriptor of the memory that its owner has too. own, total: see ``Lent``.
    """
    requests, answers = _channels()
    view = np.frombuffer(mmap.mmap(shared, os.fstat(shared).st_size), np.uint8)

    def say(kind: str, *content: Any) -> None:
        answers.write(pickle.dumps((kind, *content)))

    def ask(share: int) -> None:
        say(TAKE, share)
        if not requests.read(1):
            raise SystemExit  # which no reader of images takes for a damaged one

    memory.lend(Lent(own, total, ask, lambda share: say(GIVE, share)))
    place = None
    with suppress(EOFError, BrokenPipeError, pickle.UnpicklingError):  # its owner has ended, perhaps amid a chunk
        while select.select([requests], [], [], idle)[0]:
            chunk, size, here = pickle.load(requests)
            if here is not None and here != place:
                with suppress(OSError):  # relative paths, if there are any, will be said to lead nowhere
                    os.chdir(place := here)
            say(*_answer(chunk, size, view))


def _answer(chunk: Chunk, size: tuple[int, int], view: np.ndarray) -> tuple[Any, ...]:
    """What is said of a chunk once its rows are in the memory."""
    shape = (len(chunk.places), *size, 3)
    rows = view[: np.prod(shape, dtype=int)].reshape(shape)
    try:
        return MADE, fill(chunk, list(rows))
    except UserError as error:
        return REFUSED, error
    except Exception as error:
        return FAILED, repr(error), traceback.format_exc()


def _channels() -> tuple[BinaryIO, FileIO]:
    """Standard input and output, which are of no other use from now on: what is printed goes where errors go."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return requests, answers
