"""Methods against data sets: which configuration stands in which cell, and why a cell has none or fewer seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_peft.config.naming import label, short
from mlx_peft.report.gather import FinishedRun
from mlx_peft.report.groups import Group, Spread, grouped
from mlx_peft.report.plan import TRIAL, Planned, missing, placeless
from mlx_peft.tasks.registry import figures, leading_metrics
from mlx_peft.training.run import FREE

NO_METHOD = (*FREE, "seed", "backend", "data.name", "data.variant", "data.columns", "model.weights")
"""Settings that say where images and weights are, and not what is done with them."""
FEW = 5
"""So many names are told of what is left out for one reason."""


@dataclass(frozen=True)
class Column:
    """A data set, and the measure by which methods are compared on it.

    Attributes:
        dataset: its name, unique on the board.
        split: ``test``; ``val`` where nothing was tested.
        measure: that which leads in its task: ``top1``.
        images: of the split; None where no run says it.
        planned: what a study's plan calls it.
    """

    dataset: str
    split: str
    measure: str
    images: int | None
    planned: str = ""

    @property
    def key(self) -> str:
        """Where the number stands in a result."""
        return f"metrics.{self.split}.{self.measure}"

    @property
    def heading(self) -> str:
        """``test top-1 (%)``"""
        return f"{self.split} {figures()[self.measure]} (%)"


@dataclass(frozen=True)
class Board:
    """The configurations that are compared, by what was done and on which data set.

    Attributes:
        rows: what was done, in the order of the runs.
        cells: the configuration of a row and a column's number; none where there is no result.
        notes: of such a cell, with a result or without, what is missing there, and why.
        apart: what has no place on it, and why.
    """

    columns: tuple[Column, ...]
    rows: tuple[str, ...]
    cells: Mapping[tuple[str, int], Group]
    notes: Mapping[tuple[str, int], tuple[str, ...]]
    apart: tuple[str, ...] = ()

    def score(self, row: str, column: int) -> Spread | None:
        """What the seeds gave; None where there is no result."""
        group = self.cells.get((row, column))
        return None if group is None else group.spread(self.columns[column].key)

    def complete(self) -> list[str]:
        """The rows that have a result on every set: those that can be compared over all of them."""
        return [row for row in self.rows if all(self.score(row, at) for at in range(len(self.columns)))]


def board(runs: Sequence[FinishedRun], plan: Sequence[Planned] = (), apart: Sequence[str] = ()) -> Board:
    """The board of all that was measured on the test split; of what was validated, where nothing was tested.

    What has no such measure is not on it, and is said to be so, after what is ``apart`` already.
    """
    planned = {one.run_id: one for one in plan if one.run_id is not None and one.kind != TRIAL}
    split = next((split for split in ("test", "val") if any(_measure(run, split) for run in runs)), "test")
    groups: list[Group] = []
    unmeasured: list[str] = []
    found: dict[tuple[object, ...], list[Group]] = {}
    for group in grouped(runs):
        if (run := _first(group, split)) is None:
            unmeasured.append(group.name)
        else:
            groups.append(group)
            found.setdefault((_set_of(run, split), _measure(run, split)), []).append(group)
    columns = _columns(found, split)
    names = _labels([*found.values()], planned)
    cells = {(names[_key(group)], at): group for at, members in enumerate(found.values()) for group in members}
    rows = tuple(dict.fromkeys(names[_key(group)] for group in groups))
    told = [*apart, *_unmeasured(unmeasured if groups else [], split)]
    there = {run.result.get("run_id") for run in runs}
    return _explained(Board(columns, rows, cells, {}, tuple(told)), plan, planned, there)


def _unmeasured(names: Sequence[str], split: str) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
    return [f"not compared, for want of a {split} result: {', '.join(names[:FEW])}{more}"]


def without_copies(runs: Sequence[FinishedRun]) -> tuple[list[FinishedRun], list[str]]:
    """The runs, each once, and which are left out: those whose result is another's, to the second that it took."""
    kept: list[FinishedRun] = []
    copies: list[str] = []
    known: dict[object, list[FinishedRun]] = {}
    for run in runs:
        alike = known.setdefault(run.result.get("run_id"), [])
        twin = next((one for one in alike if one.result == run.result), None)
        if twin is None or "run_id" not in run.result:
            alike.append(run)
            kept.append(run)
        else:
            copies.append(f"not compared, since it is a copy of {twin.name}: {run.name}")
    return kept, copies


def without_trials(runs: Sequence[FinishedRun], plan: Sequence[Planned]) -> list[FinishedRun]:
    """The runs that a study did not make just to choose by; without a study all of them."""
    trials = {one.run_id for one in plan if one.kind == TRIAL} - {one.run_id for one in plan if one.kind != TRIAL}
    return [run for run in runs if run.result.get("run_id") not in trials]


def _first(group: Group, split: str) -> FinishedRun | None:
    """The first of its runs that was measured on a split."""
    return next((run for run in group.runs if _measure(run, split) is not None), None)


def _measure(run: FinishedRun, split: str) -> str | None:
    return next((name for name in leading_metrics() if run.value(f"metrics.{split}.{name}") is not None), None)


def _set_of(run: FinishedRun, split: str) -> tuple[object, ...]:
    """What runs on the same images have in common."""
    return run.value("data_name") or run.value("dataset"), run.value(f"splits.{split}.sha256")


def _columns(found: Mapping[tuple[object, ...], Sequence[Group]], split: str) -> tuple[Column, ...]:
    names = [str(members[0].runs[0].value("dataset")) for members in found.values()]
    times = Counter(names)
    columns = []
    for name, ((own, measure), members) in zip(names, found.items(), strict=True):
        run = _first(members[0], split) or members[0].runs[0]
        aside = str(own[1] if isinstance(own, tuple) else "")[:6]
        images = run.value(f"metrics.{split}.count")
        columns.append(
            Column(
                name if times[name] == 1 else f"{name} ({aside or measure})",
                split,
                str(measure),
                round(images) if isinstance(images, int | float) else None,
                str(run.value("data_name") or run.value("dataset")),
            )
        )
    return tuple(columns)


def _key(group: Group) -> str:
    """The name of its first run, which is a path: no other has it."""
    return group.runs[0].name


def _labels(sets: Sequence[Sequence[Group]], planned: Mapping[str, Planned]) -> dict[str, str]:
    """What each configuration is called, by its key: by its study; on a single set by its runs' own name; else by its
    method and the settings in which those of one method differ on one set."""
    derived = _by_settings(sets) if len(sets) > 1 else {}
    times = Counter(label for members in sets for label in {_label_of_study(one, planned) for one in members})
    told = {label for label, on in times.items() if on > 1 or len(sets) == 1}  # a label of one set names that too
    named: dict[str, str] = {}
    for members in sets:
        own: dict[str, str] = {}
        for one in members:
            known = _label_of_study(one, planned)
            own[_key(one)] = known if known is not None and known in told else derived.get(_key(one), one.name)
        twice = Counter(own.values())
        named |= {_key(one): own[_key(one)] if twice[own[_key(one)]] == 1 else one.name for one in members}
    return named


def _label_of_study(group: Group, planned: Mapping[str, Planned]) -> str | None:
    own = planned.get(group.runs[0].result.get("run_id") or "")
    return None if own is None else own.label


def _by_settings(sets: Sequence[Sequence[Group]]) -> dict[str, str]:
    differing: dict[str, dict[str, None]] = {}
    for members in sets:
        for method, alike in _by_method(members).items():
            settings = [group.runs[0].settings for group in alike]
            differing.setdefault(method, {}).update(dict.fromkeys(_told_apart(settings)))
    found = {}
    for members in sets:
        for method, alike in _by_method(members).items():
            keys = [*differing[method]]
            for group in alike:
                own = group.runs[0].settings
                said = [f"{short(key, keys)}={label(own[key])}" for key in keys if key in own]
                found[_key(group)] = " ".join([method, *said])
    return found


def _told_apart(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys by which settings are told apart: those that have several values, where these are enough; else also
    those that some of them lack."""
    keys = [key for key in dict.fromkeys(key for one in settings for key in one) if not _no_method(key)]
    several = [key for key in keys if len({str(one[key]) for one in settings if key in one}) > 1]
    if len({tuple(str(one.get(key)) for key in several) for one in settings}) == len(settings):
        return several
    return [key for key in keys if len({str(one.get(key)) for one in settings}) > 1]


def _by_method(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """The configurations by method, tokens, and what was made of the run afterwards."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        run = group.runs[0]
        parts = (run.value("method") or group.name, run.value("tokens"), run.value("step.name"))
        found.setdefault(" ".join(str(part) for part in parts if part is not None), []).append(group)
    return found


def _no_method(key: str) -> bool:
    return any(key == other or key.startswith(f"{other}.") for other in NO_METHOD)


def _explained(
    found: Board, plan: Sequence[Planned], planned: Mapping[str, Planned], there: Collection[object]
) -> Board:
    """The board with what is missing: planned runs without a result in their cells, and cells without a plan."""
    without: dict[tuple[str, int], list[Planned]] = {}
    rows, nowhere = list(found.rows), []
    row_of = _rows_by_plan(found, planned)
    for one in plan:
        if one.kind == TRIAL or (one.status == "finished" if one.run_id is None else one.run_id in there):
            continue
        at = _column_of(found, one)
        if at is None:
            nowhere.append(one)
            continue
        own = one.alike if len(found.columns) > 1 else one.label
        row = row_of.get((one.label, at)) or row_of.get((one.alike, None)) or own or one.without_seed
        rows += [row] if row not in rows else []
        without.setdefault((row, at), []).append(one)
    notes = {cell: missing(some, alone=cell not in found.cells) for cell, some in without.items()}
    for row in rows:
        for at in range(len(found.columns)):
            if found.score(row, at) is None and (row, at) not in notes:
                notes[row, at] = ("there is no such run",)
    return Board(found.columns, tuple(rows), found.cells, notes, (*found.apart, *placeless(nowhere)))


def _rows_by_plan(found: Board, planned: Mapping[str, Planned]) -> dict[tuple[str | None, int | None], str]:
    """The row of what a plan calls so, on a set, and of what is alike but for its set, on any."""
    rows: dict[tuple[str | None, int | None], str] = {}
    for (row, at), group in found.cells.items():
        own = planned.get(group.runs[0].result.get("run_id") or "")
        if own is not None and own.label is not None:
            rows[own.label, at] = row
            rows.setdefault((own.alike, None), row)
    return rows


def _column_of(found: Board, planned: Planned) -> int | None:
    if len(found.columns) == 1:
        return 0
    return next(
        (at for at, column in enumerate(found.columns) if planned.dataset in (column.planned, column.dataset)), None
    )
