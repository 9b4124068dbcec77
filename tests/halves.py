"""Grids of tests of which one half is enough for every day."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest


def half_of(*axes: Iterable[Any]) -> list[Any]:
    """Every combination of values, one of each axis, as parameters of a test; every other one is slow, as on a
    chessboard.

    So each value stands in tests of every day: of two axes with half of the other's values, and of three or more with
    every value of any other.
    """
    squares = [[*enumerate(axis)] for axis in axes]
    return [
        pytest.param(*(value for _, value in square), marks=[pytest.mark.slow] * (sum(at for at, _ in square) % 2))
        for square in product(*squares)
    ]
