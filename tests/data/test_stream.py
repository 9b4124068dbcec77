"""Images decoded a few parts ahead: in order, with what cannot be read named, and never many in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from mlx_peft.core.errors import UserError
from mlx_peft.data.ahead import PREFETCH
from mlx_peft.data.stream import PAUSE, Pause, decoded


def read(number: int) -> np.ndarray:
    if number % 5 == 3:
        raise UserError(f"{number} is broken")
    return np.full((2, 2, 3), number, np.uint8)


@pytest.mark.parametrize("threads", [1, 3])
def test_parts_are_in_order_and_what_cannot_be_read_is_empty(threads: int) -> None:
    parts = list(decoded(range(50), read, 2, 20, threads))
    assert [len(part.asked) for part in parts] == [20, 20, 10]
    for part in parts:
        for number, image, error in zip(part.asked, part.images, part.errors, strict=True):
            broken = number % 5 == 3
            assert error == (f"{number} is broken" if broken else None)
            assert (image == (0 if broken else number)).all()


def test_no_more_is_asked_for_than_a_few_parts_ahead() -> None:
    taken = []

    def endless() -> Iterator[int]:
        number = 0
        while True:
            taken.append(number)
            yield number
            number += 1

    parts = decoded(endless(), read, 2, 4, 2)
    for number in range(1, 6):
        next(parts)
        assert len(taken) <= 4 * (number + PREFETCH)
    parts.close()
    assert len(taken) <= 4 * (5 + PREFETCH)


def test_before_a_pause_all_is_handed_out_that_was_asked_for() -> None:
    taken: list[int] = []

    def slow() -> Iterator[int | Pause]:
        for number in range(10):
            taken.append(number)
            yield number
            if number in (0, 6):
                yield PAUSE

    handed = [(len(part.asked), len(taken)) for part in decoded(slow(), read, 2, 4, 2)]
    assert handed == [(1, 1), (4, 7), (2, 7), (3, 10)]


def test_another_error_is_not_kept() -> None:
    def fails(number: int) -> np.ndarray:
        raise MemoryError

    with pytest.raises(MemoryError):
        next(decoded(range(3), fails, 2, 4, 1))


def test_its_threads_end_when_it_is_closed() -> None:
    parts = decoded(range(100), read, 2, 4, 2)
    next(parts)
    before = [thread for thread in threading.enumerate() if thread.name.startswith("mlx-peft-data")]
    parts.close()
    for thread in before:
        thread.join(10)
        assert not thread.is_alive()
