"""The runs below a folder: the finished ones, and which were left out, and why."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from pydantic import ValidationError

from mlx_peft.core.errors import UserError, shortened
from mlx_peft.core.problems import in_a_line
from mlx_peft.report import forked
from mlx_peft.report.looking import below
from mlx_peft.report.peaks import told_apart
from mlx_peft.report.plan import Plan, in_order, plans
from mlx_peft.report.protocol import Protocol, described, read
from mlx_peft.report.results import Result, is_number
from mlx_peft.studies.record import RECORD
from mlx_peft.tasks.registry import leading_metrics
from mlx_peft.training.run import RunFolder, configuration_id

LARGEST = 2**28
"""A file that is read has at most so many bytes: a result with the confusion of a thousand classes has a hundredth."""

LAST_EPOCH = 10**9

FOLDER = "folder"
"""A data set of this name is any folder of images."""


@dataclass(frozen=True)
class FinishedRun:
    """A finished run: its path from where it was looked for, its ``result.json``, its ``metrics.jsonl``.

    Attributes:
        configuration: what it has in common with runs of other seeds, and with nothing else; None where it is unknown.
        folder: where it lies; None of one that was never on a disk.
        settings: its configuration, by dotted key; empty where it is unknown.
    """

    name: str
    result: dict[str, Any]
    metrics: tuple[dict[str, float], ...]
    configuration: str | None = None
    folder: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def value(self, dotted: str) -> Any:
        """The value at ``metrics.test.top1`` of the result; None where it is not there."""
        node: Any = self.result
        for key in dotted.split("."):
            node = node.get(key) if isinstance(node, dict) else None
        return node

    def curve(self, key: str) -> list[tuple[int, float]]:
        """What was recorded under a key at the end of each epoch, with the epoch."""
        return [(int(record["epoch"]), record[key]) for record in self.metrics if key in record and "epoch" in record]


@dataclass(frozen=True)
class Damaged:
    """A run that cannot be shown, and what is wrong with it."""

    name: str
    reason: str


@dataclass(frozen=True)
class Gathered:
    """The runs below a folder, the folder itself included: in the order of their suite, or else of their paths.

    Attributes:
        damaged: finished, and left out: a file of theirs cannot be read, or is not what a run writes.
        unfinished: those that were begun and have no result, by their paths from the folder.
        plans: what suites and studies there say of their runs.
    """

    finished: list[FinishedRun]
    damaged: list[Damaged]
    unfinished: list[str]
    plans: list[Plan] = field(default_factory=list)


def gathered(folder: Path) -> Gathered:
    """Looks for runs. Raises UserError where there is no finished one that is whole."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    found, (results, logs) = plans(folder), below(folder, "result.json", "metrics.jsonl")
    places = in_order([path.parent for path in results], found)
    each = forked.each(partial(_read_or_named, folder, {}), places, forked.processes(places))
    runs = [one for one in each if isinstance(one, FinishedRun)]
    damaged = [one for one in each if isinstance(one, Damaged)]
    damaged += [Damaged(_name(plan.folder / RECORD, folder), plan.fault) for plan in found if plan.fault is not None]
    if not runs:
        left_out = "".join(f"\n  left out, damaged: {one.name}: {one.reason}" for one in damaged)
        raise UserError(f"no finished run below {folder} (a finished run has a result.json){left_out}")
    unfinished = [_name(log.parent, folder) for log in logs if not (log.parent / "result.json").exists()]
    return Gathered([*map(called_by_its_folder, _like_parents(runs))], damaged, unfinished, found)


def _read_or_named(folder: Path, protocols: dict[str, Protocol], path: Path) -> FinishedRun | Damaged | None:
    name = _name(path, folder)
    try:
        return read_run(path, name, protocols)
    except UserError as error:
        return Damaged(name, str(error))


def read_run(folder: Path, name: str, protocols: dict[str, Protocol] | None = None) -> FinishedRun | None:
    """The finished run in a folder, under a name; None where its ``result.json`` is another program's.

    ``protocols`` are those that were read, by configuration: runs that differ in their seed alone have one.

    Raises UserError, with what is wrong, where a file of it cannot be read or is not what a run writes.
    """
    result, log = _read(folder / "result.json"), folder / "metrics.jsonl"
    ours = log.exists() or (folder / "config.yaml").exists()
    if not ours and not (isinstance(result, dict) and "run_id" in result):
        return None
    try:
        Result.model_validate(result)
    except ValidationError as error:
        raise UserError(f"result.json is not a run's: {in_a_line(error, Result)}") from None
    records = tuple(_records(log)) if log.exists() else ()
    configuration = _configuration(result, RunFolder(folder))
    found = _protocol(configuration, RunFolder(folder), {} if protocols is None else protocols)
    shown = {**told_apart(result), "protocol": described(result, found)}
    return FinishedRun(name, shown, records, configuration, folder, found.settings)


def _protocol(configuration: str | None, folder: RunFolder, known: dict[str, Protocol]) -> Protocol:
    if configuration is None:
        return read(folder)
    if configuration not in known:
        known[configuration] = read(folder)
    return known[configuration]


def _like_parents(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """The runs; what was made of another of them was trained as that one was."""
    known = {run.result.get("run_id"): run for run in runs}

    def complete(run: FinishedRun) -> FinishedRun:
        parent = known.get(run.result.get("of"))
        if parent is None or parent is run:
            return run
        protocol = described(run.result, Protocol(run.result["protocol"], {}), parent.result)
        return replace(run, result={**run.result, "protocol": protocol}, settings=parent.settings)

    return [complete(run) for run in runs]


def called_by_its_folder(run: FinishedRun) -> FinishedRun:
    """The run, its data set, where that is a folder of images, called by the folder's own name.

    ``data_name`` is what it was called before: by that sets are told apart.
    """
    own = PurePath(str(run.settings.get("data.root") or "")).name
    if run.value("dataset") != FOLDER or not own:
        return run
    return replace(run, result={**run.result, "dataset": own, "data_name": FOLDER})


def _configuration(result: dict[str, Any], folder: RunFolder) -> str | None:
    """What a result says; of one of before it did, what its ``config.yaml`` says. None where that cannot be read."""
    found: str | None = result.get("configuration_id")
    if found is not None or not folder.config.exists() or result.get("changes"):
        return found
    try:
        return configuration_id(folder.read_config(), result.get("splits") or {})
    except UserError:
        return None


def _records(log: Path) -> list[dict[str, float]]:
    found = []
    for number, line in enumerate(_text(log).splitlines(), start=1):
        record = _parsed(line, f"line {number} of {log.name}")
        if not isinstance(record, dict) or not all(map(is_number, record.values())):
            raise UserError(f"line {number} of {log.name} is no record of numbers")
        whole = record.get("epoch", 1)
        if not 0 <= whole <= LAST_EPOCH or not float(whole).is_integer():
            raise UserError(f"line {number} of {log.name}: there is no epoch {whole}")
        if any(not 0 <= record.get(f"val_{name}", 0) <= 1 for name in leading_metrics()):
            raise UserError(f"line {number} of {log.name}: a share should be from 0 to 1")
        found.append(record)
    return found


def _read(path: Path) -> Any:
    return _parsed(_text(path), path.name)


def _text(path: Path) -> str:
    try:
        if not path.is_file():
            raise UserError(f"{path.name} is not a file")
        if (size := path.stat().st_size) > LARGEST:
            raise UserError(f"{path.name} has {size:,} bytes, and no run's has more than {LARGEST:,}")
        RunFolder(path.parent).check_sum(path)
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path.name} cannot be read: {error}") from None


def _parsed(text: str, what: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} is no JSON: {shortened(str(error), 200)}") from None
    return value


def _name(path: Path, folder: Path) -> str:
    """A run's path from the folder where it was looked for."""
    name = path.relative_to(folder).as_posix()
    return folder.resolve().name if name == "." else name
