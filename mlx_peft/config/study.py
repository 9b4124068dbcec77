"""What a suite's file amounts to: entries, each with what it chooses from and the runs that follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mlx_peft.config.schema import Experiment
from mlx_peft.config.step import Step
from mlx_peft.config.tuning import Resources, Tuning


@dataclass(frozen=True)
class Planned:
    """A run of a suite, resolved: its name is fit for a folder, and of no other run.

    Attributes:
        step: what is made of the run called ``of``, whose experiment this is, in place of a run; None: a run.
        trial: whether it is made to choose by, and does not read the test split. A trial and a final run that are one
            experiment have one name: the second goes on where the first ended.
    """

    name: str
    experiment: Experiment
    step: Step | None = None
    of: str | None = None
    trial: bool = False


@dataclass(frozen=True)
class Candidate:
    """Values that may be chosen.

    Attributes:
        values: by key.
        trials: the runs that tell how good they are; none where there is nothing to choose.
        finals: the runs that are made where they are chosen, each followed by what is made of it.
    """

    values: Mapping[str, Any]
    trials: tuple[Planned, ...]
    finals: tuple[Planned, ...]


@dataclass(frozen=True)
class Entry:
    """A line of a study's table: runs that differ in nothing but their seeds, once what they leave open is chosen.

    Attributes:
        label: what it is called.
        values: its point on the axes, by key.
        candidates: what is chosen from; just one where nothing is; those at the ends of the ranges of a search.
        tuning: how it is chosen; None where nothing is.
        at: the candidate of values that a search proposes.
    """

    label: str
    values: Mapping[str, Any]
    candidates: tuple[Candidate, ...]
    resources: Resources
    tuning: Tuning | None
    at: Callable[[Mapping[str, Any]], Candidate]


@dataclass(frozen=True)
class Study:
    """A suite's file, resolved."""

    entries: tuple[Entry, ...]

    @property
    def runs(self) -> list[Planned]:
        """Every run that may be made, those of the ends of the ranges of a search among them."""
        return [
            run
            for entry in self.entries
            for candidate in entry.candidates
            for run in (*candidate.trials, *candidate.finals)
        ]
