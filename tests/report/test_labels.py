"""Names beside the marks of a figure: none covers another, a mark, or the line to one."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg

from mlx_peft.report.boards import board
from mlx_peft.report.drawing import png
from mlx_peft.report.figures import SIZES, drawings
from mlx_peft.report.figures.labels import MARK, Box, leader, placed
from mlx_peft.report.gather import FinishedRun, called_by_its_folder
from mlx_peft.report.study import Study

SIZE = (450.0, 400.0)
NAMES = ("lora", "linear", "adapter-plus", "vpt-deep", "layernorm", "a name of forty letters, and some more yet")


def spots(count: int, seed: int) -> list[tuple[float, float]]:
    """Most of them in a heap at the top, as methods are that are all good."""
    random = np.random.default_rng(seed)
    x, y = random.uniform(20, 430, count), 370 - 280 * random.beta(1, 4, count)
    return [(float(one), float(other)) for one, other in zip(x, y, strict=True)]


@pytest.mark.parametrize("count", [1, 8, 33])
def test_no_name_covers_a_mark_another_name_or_a_line(count: int) -> None:
    marks = spots(count, count)
    names = [(8.0 + 4 * len(NAMES[at % 5]), 8.4) for at in range(count)]
    boxes = placed(marks, names, SIZE, range(count))
    assert boxes is not None and len(boxes) == count
    for one, other in itertools.combinations(boxes, 2):
        assert not one.meets(other)
    lines = [line for box, mark in zip(boxes, marks, strict=True) if (line := leader(box, mark)) is not None]
    for box, (width, height) in zip(boxes, names, strict=True):
        assert (box.right - box.left, box.top - box.bottom) == pytest.approx((width, height))
        assert box.left >= 0 and box.right <= SIZE[0] and box.bottom >= 0 and box.top <= SIZE[1]
        assert not any(box.meets(Box(x - MARK, y - MARK, x + MARK, y + MARK)) for x, y in marks)
        assert not any(Box(box.left + 0.1, box.bottom + 0.1, box.right - 0.1, box.top - 0.1).crosses(*line)
                       for line in lines)  # fmt: skip


def test_where_there_is_no_room_for_all_there_is_no_half_of_it() -> None:
    assert placed([(50.0, 50.0)] * 30, [(90.0, 9.0)] * 30, (100.0, 100.0), range(30)) is None


PLACES = st.tuples(st.floats(-20, 20), st.floats(-20, 20))


@given(PLACES, PLACES)
def test_a_line_that_goes_through_a_box_is_seen(start: tuple[float, float], end: tuple[float, float]) -> None:
    """Beside a thousand points on the line: what they find, it finds."""
    box, steps = Box(-5.0, -3.0, 5.0, 3.0), np.linspace(0, 1, 1000)[:, None]
    on = np.array(start) * (1 - steps) + np.array(end) * steps
    inside = ((on > (box.left, box.bottom)) & (on < (box.right, box.top))).all(axis=1).any()
    assert box.crosses(start, end) or not inside
    if box.crosses(start, end):
        assert ((on > (box.left - 0.1, box.bottom - 0.1)) & (on < (box.right + 0.1, box.top + 0.1))).all(axis=1).any()


def many(methods: int, seeds: int = 3) -> list[FinishedRun]:
    random, found = np.random.default_rng(0), []
    for method in range(methods):
        trained, best = int(10 ** random.uniform(3.6, 7.3)), 0.97 - 0.04 * random.beta(1, 4)
        trained = 4000 if method == 0 else trained
        for seed in range(seeds):
            result: dict[str, Any] = {
                "run_id": f"{method} {seed}", "seed": seed, "method": f"method-{method}", "dataset": "cifar10",
                "model": "vit", "metrics": {"test": {"top1": best + random.normal(0, 0.003)}},
                "parameters": {"trainable": trained},
            }  # fmt: skip
            found.append(FinishedRun(f"method-{method}-seed={seed}", result, (), f"method-{method}"))
    return found


@pytest.mark.parametrize("methods", [3, 33])
def test_each_method_has_its_name_beside_its_mark(methods: int) -> None:
    runs = many(methods)
    (drawing,) = [one for one in drawings(Study(runs, runs, board(runs))) if one.name == "parameters"]
    figure = drawing.draw(SIZES["double"])
    (axes,) = figure.axes
    assert sorted(text.get_text() for text in axes.texts) == sorted(f"method-{at}" for at in range(methods))
    assert axes.get_xscale() == "log" and axes.get_title(loc="left") == "cifar10, vit, means of 3 seeds"
    assert png(figure, 50)
    renderer = FigureCanvasAgg(figure).get_renderer()
    drawn = [text.get_window_extent(renderer) for text in axes.texts]
    for one, other in itertools.combinations(drawn, 2):
        assert not one.overlaps(other)
    narrow = drawing.draw(SIZES["single"])
    assert len(narrow.legends[0].get_texts()) == methods


def test_a_folder_of_images_is_called_by_its_own_name() -> None:
    runs = [replace(one, settings={"data.root": "/home/somebody/beetles"}) for one in many(3)]
    for one in runs:
        one.result["dataset"] = "folder"
    runs = [*map(called_by_its_folder, runs)]
    found = board(runs)
    assert [(one.dataset, one.planned) for one in found.columns] == [("beetles", "folder")]
    (drawing,) = [one for one in drawings(Study(runs, runs, found)) if one.name == "parameters"]
    assert drawing.draw(SIZES["double"]).axes[0].get_title(loc="left") == "beetles, vit, means of 3 seeds"


def test_of_equal_scores_the_cheaper_one_is_on_the_front() -> None:
    """0.1 + 0.2 is not 0.3: what is equal but for a sum's order is no better."""
    from mlx_peft.report.figures.tradeoffs import Point, front

    assert [point.row for point in front([Point(0, 1, 100 * 0.3), Point(1, 2, 100 * (0.1 + 0.2))])] == [0]


def test_an_axis_has_the_whole_of_an_interval_but_for_one_that_would_hide_the_scores() -> None:
    from mlx_peft.report.figures.layout import shares

    low, high = shares([50.0, 70.0], [(66.0, 74.0)], 0.1, 0.07)
    assert (low, 74.0 < high < 75.0) == (48.0, True)
    assert shares([50.0, 70.0], [(0.0, 140.0)], 0.1, 0.1) == (48.0, 72.0)  # of two seeds
    assert shares([50.0, 70.0], [(42.0, 98.0)], 0.1, 0.1) == (41.6, 72.0)  # each end by itself
    assert shares([99.0, 100.0], [], 0.1, 2.0) == (98.9, 101.0)  # nothing is above 100 %
    assert shares([60.0], [], 0.1, 0.1) == (59.0, 61.0)
