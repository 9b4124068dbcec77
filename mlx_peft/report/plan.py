"""What a suite or a study planned: its runs in their order, what became of those without a result, what was chosen."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_peft.config.naming import label
from mlx_peft.core.errors import UserError, shortened
from mlx_peft.report.looking import below
from mlx_peft.studies.record import RECORD, ChoiceRecord, NodeRecord, read_record

LARGEST = 2**24
"""A file with a suite's runs has at most so many bytes: of a thousand runs it has a fiftieth."""

TRIAL = "tune"
"""The kind of a run that is made to choose by."""

SEED = r"\bseed=(\d+)"
"""What a suite puts behind a run's name."""

LONGEST = 300
"""Of an error so many letters are told."""

REASONS = {"waiting": "not run", "running": "not finished", "interrupted": "interrupted", "failed": "failed"}
"""Why there is no result, by what the plan says of a run."""


@dataclass(frozen=True)
class Planned:
    """A run that was planned.

    Attributes:
        folder: its folder's name; None of one that has none yet.
        status: a key of REASONS, or ``finished``.
        error: why it failed.
        kind: of a study: ``tune``, ``final`` or ``then``.
        label: what a study calls the line of a table that it belongs to.
        dataset: on which; None where the plan does not say.
        alike: the label without what says the data set: the same for what is the same on another.
        seed: None where neither the plan nor the name says it.
    """

    name: str
    folder: str | None
    run_id: str | None = None
    status: str = "waiting"
    error: str | None = None
    kind: str | None = None
    label: str | None = None
    dataset: str | None = None
    alike: str | None = None
    seed: int | None = None

    @property
    def reason(self) -> str:
        """Why there is no result."""
        said = REASONS.get(self.status, "there is no result")
        return f"{said}: {self.error}" if self.error else said

    @property
    def without_seed(self) -> str:
        """Its name without the seed that a suite puts behind it."""
        return re.sub(rf"-?{SEED}", "", self.name).strip("-") or self.name


def missing(runs: Sequence[Planned], *, alone: bool) -> tuple[str, ...]:
    """Why runs of one configuration have no result: a line for each reason, ``seeds 1, 2: failed: no memory``.

    Args:
        alone: whether there are no others: then one reason of all is told without the seeds, ``not run``.
    """
    found: dict[str, list[Planned]] = {}
    for run in runs:
        found.setdefault(run.reason, []).append(run)
    if alone and len(found) == 1:
        return tuple(found)
    return tuple(f"{_which(some)}: {reason}" for reason, some in found.items())


def _which(runs: Sequence[Planned]) -> str:
    """``seeds 1, 2``; what has no seed by its name."""
    seeds = sorted({run.seed for run in runs if run.seed is not None})
    names = dict.fromkeys(run.name for run in runs if run.seed is None)
    told = [f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"] if seeds else []
    return ", ".join([*told, *names])


def placeless(runs: Sequence[Planned]) -> tuple[str, ...]:
    """Runs without a result that are in no table: a line for each reason, with what they are."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        found.setdefault(run.reason, {})[run.without_seed] = None
    return tuple(f"{', '.join(names)}: {reason}" for reason, names in found.items())


@dataclass(frozen=True)
class Plan:
    """What lies in a folder.

    Attributes:
        choices: what was chosen on validation images, and from what.
        fault: why it could not be read; then it is empty.
    """

    folder: Path
    runs: Sequence[Planned] = ()
    choices: Sequence[ChoiceRecord] = ()
    fault: str | None = None


def plans(folder: Path) -> list[Plan]:
    """The plans at and below a folder: a study's record, or else a suite's."""
    studies, suites = below(folder, RECORD, "sweep.json")
    found = {record.parent: _of_study(record.parent) for record in studies}
    for record in suites:
        if record.parent not in found:
            found[record.parent] = Plan(record.parent, _of_suite(record))
    return [found[parent] for parent in sorted(found)]


def in_order(runs: Sequence[Path], found: Sequence[Plan]) -> list[Path]:
    """The folders of runs, sorted; those of a plan in its order."""
    ordered = sorted(runs)
    for plan in found:
        places: dict[str, int] = {}
        for place, one in enumerate(plan.runs):
            if one.folder is not None:  # what was tried and chosen stands where it was tried
                places.setdefault(one.folder, place)
        slots = [at for at, run in enumerate(ordered) if run.parent == plan.folder and run.name in places]
        members = sorted((ordered[at] for at in slots), key=lambda run: places[run.name])
        for at, run in zip(slots, members, strict=True):
            ordered[at] = run
    return ordered


def _of_study(folder: Path) -> Plan:
    try:
        record = read_record(folder)
    except UserError as error:
        return Plan(folder, fault=_line(str(error)))
    return Plan(folder) if record is None else Plan(folder, [*map(_node, record.nodes)], record.choices)


def _node(node: NodeRecord) -> Planned:
    folder = None if node.folder is None else Path(node.folder).name
    step = "" if node.step is None else f" {node.step}"  # what is made of a run stands in a line of its own
    return Planned(
        node.name,
        folder,
        node.run_id,
        node.status,
        _line(node.error),
        node.kind,
        node.label + step,
        _dataset(node.changes),
        _without_set(node.label, node.changes) + step,
        node.seed,
    )


def _without_set(called: str, changes: Mapping[str, Any]) -> str:
    """``lora-rank=8`` of ``lora-name=cifar10-rank=8``."""
    for key in ("data.name", "data.variant"):
        for name in (key, key.rpartition(".")[2]):
            called = re.sub(rf"(^|-){re.escape(f'{name}={label(changes.get(key))}')}(?=-|$)", "", called)
    return called.strip("-")


def _dataset(changes: Mapping[str, Any]) -> str | None:
    """The data set of a run where its study has several."""
    name, variant = changes.get("data.name"), changes.get("data.variant")
    if not isinstance(name, str):
        return None
    return f"{name}:{variant}" if isinstance(variant, str) else name


def _of_suite(record: Path) -> list[Planned]:
    """The runs of a suite; none where the file is not what a sweep writes: it decides nothing but order and names."""
    try:
        if not record.is_file() or record.stat().st_size > LARGEST:
            return []
        return [_entry(entry) for entry in json.loads(record.read_text("utf-8"))["runs"]]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return []


def _entry(entry: Any) -> Planned:
    folder = Path(entry["folder"]).name
    told = {key: _line(entry.get(key)) for key in ("run_id", "error")}
    name = _line(entry.get("name")) or folder
    seed = re.search(SEED, name)
    return Planned(
        name,
        folder,
        status=_line(entry.get("status")) or "waiting",
        seed=int(seed[1]) if seed and len(seed[1]) < 20 else None,
        **told,
    )


def _line(value: Any) -> str | None:
    """A text on one line, of a length that fits into a footnote; None of anything else."""
    return shortened(" ".join(value.split()), LONGEST) if isinstance(value, str) else None
