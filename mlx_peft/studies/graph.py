"""A study as a graph of runs: which may start, what is chosen when trials are done, and what then follows."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_peft.config.study import Candidate, Entry, Planned, Study
from mlx_peft.config.tuning import Resources, Tuning
from mlx_peft.core.errors import UserError
from mlx_peft.studies.choosing import TIES, Score, best, check_search, direction_of, metric_of, proposed, scored
from mlx_peft.studies.ready import Checker, SuiteRun
from mlx_peft.studies.record import Before, CandidateRecord, ChoiceRecord, Kind, NodeRecord, Status, StudyRecord


@dataclass(eq=False)
class Node:
    """A run of the study.

    Attributes:
        run: None while it is not chosen what it is.
        needs: what must be finished before it starts.
        seconds: that making it took, as far as it is known.
    """

    kind: Kind
    name: str
    label: str
    values: Mapping[str, Any]
    resources: Resources
    planned: Planned
    run: SuiteRun | None = None
    needs: tuple[Node, ...] = ()
    status: Status = "waiting"
    error: str | None = None
    seconds: float | None = None

    @property
    def settled(self) -> bool:
        """Whether nothing more becomes of it."""
        return self.status in ("finished", "failed")

    def fail(self, error: str) -> None:
        self.status, self.error = "failed", error


@dataclass(eq=False)
class Tried:
    """A candidate whose trials are nodes."""

    candidate: Candidate
    trials: tuple[Node, ...]
    score: Score | None = None
    error: str | None = None


@dataclass(eq=False)
class Line:
    """An entry of the study: its candidates, and its final runs, which are known once one of them is chosen."""

    entry: Entry
    tried: list[Tried] = field(default_factory=list)
    finals: list[Node] = field(default_factory=list)
    metric: str | None = None
    chosen: int | None = None
    settled: bool = False

    @property
    def nodes(self) -> Iterator[Node]:
        yield from (trial for tried in self.tried for trial in tried.trials)
        yield from self.finals


class Graph:
    """The state of a study while it is made."""

    def __init__(self, study: Study, checker: Checker, before: Before) -> None:
        """Raises UserError, with all that is wrong with any run that may be made."""
        self._checker, self._before = checker, before
        planned = study.runs
        for entry in study.entries:
            if entry.tuning is not None:
                check_search(entry.tuning)
        self._ready = {(one.name, one.trial): run for one, run in zip(planned, checker.check(planned), strict=True)}
        self.lines = [self._line(entry) for entry in study.entries]
        self.advance()

    @property
    def nodes(self) -> list[Node]:
        """Every run, in the order of the file: those to choose by before the final ones of their line."""
        return [node for line in self.lines for node in line.nodes]

    def advance(self) -> None:
        """Sees which are finished or have failed before, chooses where all trials of a line are settled, and fails
        what stands on a run that failed."""
        for line in self.lines:
            for tried in line.tried:
                for trial in tried.trials:
                    self._look(trial)
            if not line.settled:
                self._choose(line)
            for node in line.finals:
                self._look(node)

    def startable(self, busy: Collection[Path]) -> list[Node]:
        """The runs that may start, in their order: none in a folder that is ``busy``, no two in one folder."""
        found: list[Node] = []
        taken = set(busy)
        for node in self.nodes:
            if node.run is None or node.status != "waiting" or node.run.folder.path in taken:
                continue
            if all(need.status == "finished" for need in node.needs):
                taken.add(node.run.folder.path)
                found.append(node)
        return found

    @property
    def choices(self) -> list[ChoiceRecord]:
        """What is chosen so far, and from what."""
        return [_choice(line) for line in self.lines if line.entry.tuning is not None]

    def record(self, out: Path) -> StudyRecord:
        """What stands in the study's folder."""
        return StudyRecord(nodes=[_record(node, out) for node in self.nodes], choices=self.choices)

    def _line(self, entry: Entry) -> Line:
        line = Line(entry)
        if entry.tuning is None:
            (only,) = entry.candidates
            line.finals = self._finals(entry, only, known=True)
            line.settled = True
            return line
        if not entry.tuning.search:
            line.tried = [self._tried(entry, candidate) for candidate in entry.candidates]
        line.finals = self._finals(entry, entry.candidates[0], known=False)
        return line

    def _tried(self, entry: Entry, candidate: Candidate) -> Tried:
        values = {**entry.values, **candidate.values}
        trials = (
            Node("tune", one.name, entry.label, values, entry.resources, one, self._run(one))
            for one in candidate.trials
        )
        return Tried(candidate, tuple(trials))

    def _finals(self, entry: Entry, candidate: Candidate, *, known: bool) -> list[Node]:
        """The final runs of a candidate, and what is made of them; without names while it is not chosen."""
        values = {**entry.values, **(candidate.values if known else {})}
        found: dict[str, Node] = {}
        for one in candidate.finals:
            kind: Kind = "final" if one.step is None else "then"
            needs = () if one.of is None else (found[one.of],)
            name = one.name if known else f"{entry.label}-seed={one.experiment.seed}"
            if one.step is not None and not known:
                name += f"-{one.step.folder}"
            run = self._run(one) if known else None
            found[one.name] = Node(kind, name, entry.label, values, entry.resources, one, run, needs)
        return list(found.values())

    def _run(self, planned: Planned) -> SuiteRun:
        return self._ready[planned.name, planned.trial]

    def _look(self, node: Node) -> None:
        """Sees what is known of a node that waits."""
        if node.status != "waiting" or node.run is None:
            return
        key = (node.run.run_id, node.run.tests)
        if node.seconds is None:
            node.seconds = self._before.seconds.get(key)
        if failed := [need for need in node.needs if need.status == "failed"]:
            node.fail(f"there is no finished {failed[0].name} to make it of")
        elif node.run.finished:
            node.status = "finished"
        elif (error := self._before.errors.get(key)) is not None:
            node.fail(error)

    def _choose(self, line: Line) -> None:
        """Chooses, or tries further, once all trials are settled that this waits for."""
        tuning = line.entry.tuning
        assert tuning is not None
        while all(trial.settled for tried in line.tried for trial in tried.trials):
            for tried in line.tried:
                self._score(line, tuning, tried)
            if not tuning.search or len(line.tried) >= (tuning.trials or 0):
                self._settle(line, tuning)
                return
            self._try_further(line, tuning)

    def _try_further(self, line: Line, tuning: Tuning) -> None:
        """The next candidates that a search proposes: those that need know nothing of each other."""
        known = [(tried.candidate.values, None if tried.score is None else tried.score.metric) for tried in line.tried]
        direction = direction_of(tuning, line.metric)
        count = min(tuning.at_once, (tuning.trials or 0) - len(known))
        for number in range(len(known), len(known) + count):
            candidate = line.entry.at(proposed(tuning, known, number, direction))
            every = (*candidate.trials, *candidate.finals)
            self._ready |= {
                (one.name, one.trial): run for one, run in zip(every, self._checker.check(every), strict=True)
            }
            line.tried.append(self._tried(line.entry, candidate))
        for tried in line.tried[-count:]:
            for trial in tried.trials:
                self._look(trial)

    def _score(self, line: Line, tuning: Tuning, tried: Tried) -> None:
        if failed := [trial for trial in tried.trials if trial.status == "failed"]:
            tried.score, tried.error = None, f"{failed[0].name} failed: {failed[0].error}"
            return
        runs = [trial.run for trial in tried.trials if trial.run is not None]
        results: list[Mapping[str, Any]] = [run.folder.read_result() or {} for run in runs]
        try:
            tried.score, tried.error = scored(tuning, runs[0].task, results), None
            line.metric = metric_of(tuning, runs[0].task, results[0]["metrics"]["val"])
        except UserError as error:
            tried.score, tried.error = None, str(error)

    def _settle(self, line: Line, tuning: Tuning) -> None:
        """Chooses the best candidate, whose final runs then follow; without any these have failed."""
        line.settled = True
        line.chosen = best([tried.score for tried in line.tried], direction_of(tuning, line.metric))
        if line.chosen is None:
            why = next((tried.error for tried in line.tried if tried.error), "")
            for node in line.finals:
                node.fail(f"nothing could be chosen: {why}")
        else:
            line.finals = self._finals(line.entry, line.tried[line.chosen].candidate, known=True)


def _record(node: Node, out: Path) -> NodeRecord:
    step, run = node.planned.step, node.run
    return NodeRecord(
        name=node.name,
        kind=node.kind,
        label=node.label,
        method=node.planned.experiment.method.name,
        seed=node.planned.experiment.seed,
        changes=dict(node.values),
        run_id=None if run is None else run.run_id,
        folder=None if run is None else run.folder.path.relative_to(out).as_posix(),
        step=None if step is None else step.name,
        of=node.needs[0].name if node.needs else None,
        status=node.status,
        error=node.error,
        seconds=node.seconds,
    )


def _choice(line: Line) -> ChoiceRecord:
    tuning = line.entry.tuning
    assert tuning is not None
    candidates = [
        CandidateRecord(
            changes=dict(tried.candidate.values),
            runs=[trial.name for trial in tried.trials],
            score=None if tried.score is None else tried.score.metric,
            loss=None if tried.score is None else tried.score.loss,
            error=tried.error,
        )
        for tried in line.tried
    ]
    return ChoiceRecord(
        label=line.entry.label,
        metric=line.metric and f"val.{line.metric}",
        direction=direction_of(tuning, line.metric),
        ties=TIES,
        candidates=candidates,
        chosen=line.chosen,
    )
