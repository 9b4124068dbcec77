"""How a study is watched: a live table on a terminal, a line for each run in a log; both on standard error."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mlx_peft.cli.progress import Lines
from mlx_peft.core.errors import UserError
from mlx_peft.core.text import counted, printable, printable_lines
from mlx_peft.report.format import seconds
from mlx_peft.studies.graph import Graph, Node
from mlx_peft.studies.remaining import Remaining, remaining
from mlx_peft.training.run import Record, RunFolder

KINDS = {"tune": "to choose by", "final": "final", "then": "made of one"}
TAIL = 4096
"""So many bytes at the end of a run's metrics hold its last line."""


@contextmanager
def watching(at_once: int, logs: bool) -> Iterator[Said | Board]:
    """The watcher that suits standard error, for as long as the block runs.

    Args:
        at_once: how many runs are made at a time.
        logs: whether what the runs say goes to files wherever this is watched.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        yield Said(logs)
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield Board(live, at_once)


class Said:
    """A line for each run that begins."""

    def __init__(self, logs: bool) -> None:
        self.logs = logs
        self._lines = Lines()

    def note(self, text: str) -> None:
        self._lines.note(text)

    def started(self, node: Node, graph: Graph) -> None:
        nodes = graph.nodes
        purpose = " (to choose by)" if node.kind == "tune" else ""
        self.note(f"[{nodes.index(node) + 1}/{len(nodes)}] {node.name}{purpose}")

    def tick(self, graph: Graph) -> None:
        """The runs tell themselves how they go on."""


class Board:
    """A table of what is at work and what is left, notes above it."""

    logs = True

    def __init__(self, live: Live, at_once: int) -> None:
        self._live, self._at_once = live, at_once
        self._began: dict[Node, float] = {}

    def note(self, text: str) -> None:
        self._live.console.print(printable_lines(text), markup=False)

    def started(self, node: Node, graph: Graph) -> None:
        self._began[node] = time.monotonic()
        self.tick(graph)

    def tick(self, graph: Graph) -> None:
        left = told(remaining(graph.nodes, self._at_once), self._at_once)
        self._live.update(Group(Text(left), self._left(graph.nodes), self._running(graph.nodes)), refresh=True)

    def _left(self, nodes: list[Node]) -> Table:
        table = Table(box=None)
        for heading in ("runs", "waiting", "at work", "finished", "failed"):
            table.add_column(heading, justify="left" if heading == "runs" else "right")
        for kind, called in KINDS.items():
            states = [node.status for node in nodes if node.kind == kind]
            if states:
                waiting = states.count("waiting") + states.count("interrupted")
                counts = (waiting, states.count("running"), states.count("finished"), states.count("failed"))
                table.add_row(called, *map(str, counts))
        return table

    def _running(self, nodes: list[Node]) -> Table:
        table = Table(box=None)
        for heading in ("at work", "epoch", "loss", "since"):
            table.add_column(heading, justify="left" if heading == "at work" else "right")
        for node in nodes:
            if node.status == "running" and node.run is not None:
                last, epochs = latest(node.run.folder), node.planned.experiment.train.epochs
                loss = last.get("loss", last.get("train_loss"))
                table.add_row(
                    Text(printable(node.name)),
                    f"{int(last['epoch'])}/{epochs}" if node.kind != "then" and "epoch" in last else "",
                    "" if loss is None else f"{loss:.3f}",
                    seconds(time.monotonic() - self._began.get(node, time.monotonic())),
                )
        return table


def told(left: Remaining, at_once: int) -> str:
    """``12 runs left, about 3 min 20 s, by the 4 that were measured``"""
    runs = f"{counted(left.runs, 'run')} left"
    if not left.runs:
        return runs
    if left.seconds is None:
        return f"{runs}; how long they take is not known: none like them was measured here"
    several = f" {at_once} at a time" if at_once > 1 else ""
    return f"{runs},{several} about {seconds(left.seconds)}, by the {left.measured} that were measured"


def latest(folder: RunFolder) -> Record:
    """The last line of a run's metrics; nothing where there is none that is whole."""
    from mlx_peft.core.json_io import from_json

    try:
        lines = _tail(folder.metrics).splitlines()
        found = from_json(lines[-1]) if lines else {}
    except (OSError, ValueError, RecursionError, UserError):
        return {}
    numbers = isinstance(found, dict) and all(isinstance(value, (int, float)) for value in found.values())
    return found if numbers else {}


def _tail(path: Path) -> bytes:
    """The end of a file, up to its last whole line."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        return file.read().rpartition(b"\n")[0]
