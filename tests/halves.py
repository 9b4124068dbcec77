"""Grids of tests of which a part is enough for every day; the rest is slow, and runs with ``make test-slow``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby, product
from typing import Any

import pytest


def half_of(*axes: Iterable[Any]) -> list[Any]:
    """Every combination of values, one of each axis, as parameters of a test; every other one is slow, as on a
    chessboard.

    So each value stands in tests of every day: of two axes with half of the other's values, and of three or more with
    every value of any other.
    """
    return part_of(2, axes)


def third_of(*axes: Iterable[Any]) -> list[Any]:
    """The same of a large grid: two of three are slow."""
    return part_of(3, axes)


def part_of(share: int, axes: Iterable[Iterable[Any]]) -> list[Any]:
    return [
        pytest.param(*values, marks=[pytest.mark.slow] * bool(sum(places) % share))
        for places, values in (zip(*square, strict=True) for square in product(*map(enumerate, axes)))
    ]


def daily(values: Iterable[Any], *chosen: Any) -> list[Any]:
    """Values as parameters of a test, of which those that are chosen are for every day, and the others slow."""
    values = [*values]
    assert {*chosen} <= {*values}, chosen
    return [pytest.param(value, marks=[pytest.mark.slow] * (value not in chosen)) for value in values]


def squares_of_every_day(grid: Sequence[Sequence[int]], share: int, begin: int = 0) -> list[bool]:
    """Of the squares of a grid, each given by its places along the axes, one in ``share``: those whose places have,
    with ``begin``, a sum that it divides.

    Each value of an axis stands in tests of every day where another axis has ``share`` of them, or others together. Of
    a single axis all do.
    """
    if sum(len({*places}) > 1 for places in zip(*grid, strict=True)) < 2:
        return [True] * len(grid)
    return [(begin + sum(square)) % share == 0 for square in grid]


def grid_of(items: Sequence[Any]) -> list[tuple[int, ...]]:
    """Of the tests of one function the places along the axes: parameters that are given together are one axis, and each
    parametrised fixture is one."""
    given = [mark.args[0] for mark in items[0].iter_markers("parametrize")]
    axes = [{name.strip() for name in (names.split(",") if isinstance(names, str) else names)} for names in given]
    axes += [{name} for name in items[0].callspec.params if not any(name in axis for axis in axes)]
    along = []
    for axis in axes:
        values = [tuple(id(value) for name, value in item.callspec.params.items() if name in axis) for item in items]
        places = {value: place for place, value in enumerate(dict.fromkeys(values))}
        along.append([places[value] for value in values])
    return [*zip(*along, strict=True)]


def mark_the_rest_slow(items: Iterable[Any]) -> None:
    """What ``@pytest.mark.one_in(share)`` means, over all parameters of a test, those of its fixtures included.

    Tests of the same grid begin at different squares, as their names have different lengths: what is slow in one of
    them is not in the next.
    """

    def name(item: Any) -> str:
        return item.nodeid.partition("[")[0]

    marked = [item for item in items if item.get_closest_marker("one_in") and hasattr(item, "callspec")]
    for function, group in groupby(sorted(marked, key=name), name):
        tests = [*group]
        (share,) = tests[0].get_closest_marker("one_in").args
        for test, is_chosen in zip(tests, squares_of_every_day(grid_of(tests), share, len(function)), strict=True):
            if not is_chosen:
                test.add_marker(pytest.mark.slow)
