"""Every image of a set looked at, by as many threads as there are processors free, while someone watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from mlx_peft.core import cores

Seen = TypeVar("Seen")

Watch = Callable[[str, int, int | None], object]
"""Is told what is being done, how many images are done, and of how many, None where that is not known yet: at the
beginning, often, and at the end."""

CHUNK, AHEAD = 64, 4
"""Images that are handed to a thread at once; and how many such parts of each thread are under way, or wait."""


def unwatched(what: str, done: int, total: int | None) -> None:
    """Says nothing."""


def threads(wanted: int) -> int:
    """Of a look at a whole set, before all else: as many as there are processors free, or more if more are wanted."""
    return max(wanted, cores.free())


def each(
    look: Callable[[int], Seen], rows: Sequence[int] | range, wanted: int, what: str, watch: Watch = unwatched
) -> Iterator[Seen]:
    """What is seen in each row, in their order; so many threads are ``wanted``. Few rows wait, however many there are.

    Raises what ``look`` raises, at the first such row.
    """
    number, total = threads(wanted), len(rows)
    parts = iter(rows[first : first + CHUNK] for first in range(0, total, CHUNK))
    done = 0
    watch(what, done, total)
    with ThreadPoolExecutor(number) as pool:
        try:
            waiting = [pool.submit(_each, look, part) for part in islice(parts, AHEAD * number)]
            while waiting:
                seen = waiting.pop(0).result()
                waiting += [pool.submit(_each, look, part) for part in islice(parts, 1)]
                yield from seen
                watch(what, done := done + len(seen), total)
        finally:
            pool.shutdown(cancel_futures=True)


def _each(look: Callable[[int], Seen], rows: Sequence[int] | range) -> list[Seen]:
    return [look(row) for row in rows]
