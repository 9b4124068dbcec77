"""Of a grid of tests, those of every day leave no value out."""

from __future__ import annotations

from itertools import product

import pytest
from halves import daily, half_of, squares_of_every_day

GRIDS = [(2, (5, 2)), (2, (2, 2, 3)), (3, (23, 3)), (3, (2, 2, 7))]


@pytest.mark.parametrize(("share", "sizes"), GRIDS)
def test_each_value_of_each_axis_stands_in_a_test_of_every_day(share: int, sizes: tuple[int, ...]) -> None:
    grid = [*product(*map(range, sizes))]
    chosen = [square for square, is_chosen in zip(grid, squares_of_every_day(grid, share, 1), strict=True) if is_chosen]
    assert len(chosen) <= len(grid) // share + 1
    assert [{*places} for places in zip(*chosen, strict=True)] == [{*range(size)} for size in sizes]


def test_of_a_single_axis_every_value_does() -> None:
    assert all(squares_of_every_day([(place, 0) for place in range(4)], 2))


@pytest.fixture(params="xy")
def column(request: pytest.FixtureRequest) -> str:
    letter: str = request.param
    return letter


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("row", "doubled"), [(0, 0), (1, 2), (2, 4)])
def test_a_square_of_not_every_day_is_slow(row: int, doubled: int, column: str, request: pytest.FixtureRequest) -> None:
    begin = len(request.node.nodeid.partition("[")[0])
    is_slow = request.node.get_closest_marker("slow") is not None
    assert is_slow == bool((begin + row + "xy".index(column)) % 2)


def test_every_other_combination_is_slow_and_so_is_what_is_not_chosen() -> None:
    assert [len(one.marks) for one in half_of("ab", "xy")] == [0, 1, 1, 0]
    assert [len(one.marks) for one in daily("abc", "b")] == [1, 0, 1]
