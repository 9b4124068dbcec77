"""The live table of a study: what is at work, how far that is, and what is left."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.live import Live
from studies.conftest import dataset as dataset  # the runs are those of the studies' tests
from studies.conftest import plan as plan
from studies.graphs import graph_of

from mlx_peft.cli.board import Board, latest, told
from mlx_peft.studies.remaining import Remaining
from mlx_peft.training.run import RunFolder


def test_it_shows_what_is_at_work_and_what_is_left(plan: Any, tmp_path: Path) -> None:
    graph = graph_of(plan(a=2, b=3, c=4), tmp_path)
    first, second, third = graph.nodes
    first.status, first.seconds = "finished", 10.0
    second.status = "running"
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "metrics.jsonl").write_text('{"step": 4, "epoch": 2, "loss": 0.25}\n{"step": 5, "ep')
    third.fail("the loss is nan")
    screen = StringIO()
    with Live(console=Console(file=screen, force_terminal=True, width=120), auto_refresh=False) as live:
        board = Board(live, 1)
        board.note("a note")
        board.started(second, graph)
    shown = screen.getvalue()
    assert "a note" in shown and "2/3" in shown and "0.250" in shown
    assert "1 run left, about 15.0 s, by the 1 that were measured" in shown  # 5 s an epoch, and 3 epochs
    (row,) = {line.strip() for line in shown.splitlines() if line.strip().startswith("final")}
    assert row.split() == ["final", "0", "1", "1", "1"]


@pytest.mark.parametrize(
    ("left", "text"),
    [
        (Remaining(0, 0.0, 3), "0 runs left"),
        (Remaining(2, None, 0), "2 runs left; how long they take is not known: none like them was measured here"),
        (Remaining(4, 90.0, 3), "4 runs left, 2 at a time about 1 min 30 s, by the 3 that were measured"),
    ],
)
def test_what_is_left_is_told_with_what_that_rests_on(left: Remaining, text: str) -> None:
    assert told(left, 2) == text


@pytest.mark.parametrize("content", ["", "{", "[]\n", '{"step": "x"}\n', "\x00" * 9000 + "\n"])
def test_metrics_that_cannot_be_read_show_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(content)
    assert latest(RunFolder(tmp_path)) == {}
    assert latest(RunFolder(tmp_path / "nowhere")) == {}
