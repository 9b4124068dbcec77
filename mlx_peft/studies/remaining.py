"""How long what is left of a study will take, from the runs of it that were measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_peft.core.errors import UserError
from mlx_peft.studies.graph import Node

Alike = Callable[[Node], Any]

ALIKE: tuple[Alike, ...] = (
    lambda node: (node.label, node.planned.step),
    lambda node: (node.planned.experiment.method.name, node.planned.step),
    lambda node: node.planned.step,
    lambda node: node.planned.step is None,
)
"""Whose time a run's is taken from: that of the nearest of these which has a measured one."""


@dataclass(frozen=True)
class Remaining:
    """What is left to do.

    Attributes:
        runs: how many.
        seconds: how long they take, by those that were measured; None where none of the same kind was.
        measured: how many were.
    """

    runs: int
    seconds: float | None
    measured: int


def remaining(nodes: Sequence[Node], at_once: int = 1) -> Remaining:
    """What is left of a study, where so many runs are made at once."""
    measured = [(node, seconds) for node in nodes if (seconds := seconds_an_epoch(node)) is not None]
    left = [node for node in nodes if node.status not in ("finished", "failed")]
    found = [expected(node, measured) for node in left]
    known = [seconds for seconds in found if seconds is not None]
    total = sum(known) / at_once if len(known) == len(left) else None
    return Remaining(len(left), total, len(measured))


def seconds_an_epoch(node: Node) -> float | None:
    """What a finished run took, all in all, for each of its epochs; None where that is not known."""
    if node.status != "finished" or node.run is None:
        return None
    seconds = node.seconds if node.seconds is not None else _trained(node)
    return None if not seconds else seconds / _epochs(node)


def expected(node: Node, measured: Iterable[tuple[Node, float]]) -> float | None:
    """Seconds that a run takes, by those of the runs that are most like it."""
    every = list(measured)
    for alike in ALIKE:
        times = [seconds for one, seconds in every if alike(one) == alike(node)]
        if times:
            return max(0.0, sum(times) / len(times) * _epochs(node) - (node.seconds or 0.0))
    return None


def _epochs(node: Node) -> int:
    """Of a run; 1 of what is made of one, which takes as long after few as after many."""
    return node.planned.experiment.train.epochs if node.planned.step is None else 1


def _trained(node: Node) -> float | None:
    """The seconds of training, of a run that was not made by a study."""
    assert node.run is not None
    try:
        time = (node.run.folder.read_result() or {}).get("time")
    except UserError:
        return None
    seconds = time.get("train_seconds") if isinstance(time, dict) else None
    return seconds if isinstance(seconds, float) else None
