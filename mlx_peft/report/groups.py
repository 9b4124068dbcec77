"""Runs that differ in their seed alone, taken together: what is told of them is a mean and a standard deviation."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from mlx_peft.report.gather import FinishedRun
from mlx_peft.report.significance import t_interval


@dataclass(frozen=True)
class Spread:
    """Several measurements of one thing.

    Attributes:
        deviation: the sample's standard deviation, with n - 1; None of one measurement.
    """

    mean: float
    deviation: float | None
    n: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """Student's 95 % interval of the mean; None of one measurement."""
        return None if self.deviation is None else t_interval(self.mean, self.deviation, self.n)


def spread(values: Iterable[float]) -> Spread | None:
    """Of the values; None where there are none."""
    found = list(values)
    if not found:
        return None
    return Spread(fmean(found), stdev(found) if len(found) > 1 else None, len(found))


@dataclass(frozen=True)
class Group:
    """A run, or several of one configuration, each with another seed; named by what their names have in common."""

    name: str
    runs: tuple[FinishedRun, ...]

    def spread(self, dotted: str) -> Spread | None:
        """Of the numbers at ``metrics.test.top1`` of the results; None where none has one."""
        return spread(value for run in self.runs if isinstance(value := run.value(dotted), (int, float)))

    def curve(self, key: str) -> list[tuple[int, Spread]]:
        """Of what was recorded under a key at the end of each epoch, as far as all the runs that have it went."""
        curves = [dict(curve) for run in self.runs if (curve := run.curve(key))]
        shared = [epoch for epoch in (curves[0] if curves else ()) if all(epoch in curve for curve in curves)]
        found = ((epoch, spread(curve[epoch] for curve in curves)) for epoch in shared)
        return [(epoch, one) for epoch, one in found if one is not None]


def grouped(runs: Sequence[FinishedRun]) -> list[Group]:
    """The runs of each configuration together, in the order of their first ones.

    A run whose configuration is not known stands alone, and so does one whose seed another of its group has: the two
    differ in something that nothing here tells.
    """
    found: dict[object, dict[object, FinishedRun]] = {}
    for run in runs:
        key: object = run.configuration or run.name
        if run.value("seed") in found.get(key, {}):
            key = (key, run.name)
        found.setdefault(key, {})[run.value("seed")] = run
    groups = [tuple(members.values()) for members in found.values()]
    names = [_common(members) for members in groups]
    twice = {name for name, times in Counter(names).items() if times > 1}
    return [
        Group(_listed(members) if name in twice else name, members) for name, members in zip(names, groups, strict=True)
    ]


def _common(runs: Sequence[FinishedRun]) -> str:
    """``lora`` of ``lora-seed=0`` and ``lora-seed=1``, ``lora-mlx`` of ``lora-mlx-0`` and ``lora-mlx-1``."""
    if len(runs) == 1:
        return runs[0].name
    left = {_without_seed(run.name, run.value("seed")) for run in runs}
    if len(left) > 1:
        return _listed(runs)
    return left.pop() or str(runs[0].value("method") or _listed(runs))  # seeds alone: by what was trained


def _without_seed(name: str, seed: object) -> str:
    """The name without its last part that says the seed."""
    part = rf"(?:^|[-_./ ])(?:seed|s)?[=_-]?{re.escape(str(seed))}(?=$|[-_./ ])"
    places = list(re.finditer(part, name))
    return f"{name[: places[-1].start()]}{name[places[-1].end() :]}".strip("-_./ ") if places else name


def _listed(runs: Sequence[FinishedRun]) -> str:
    return runs[0].name if len(runs) == 1 else f"{runs[0].name} and {len(runs) - 1} more"
