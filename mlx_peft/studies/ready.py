"""The runs of a suite, each checked against its data, its model and its folder before the first of them starts."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from convert.base import Base, load_base
from mlx_peft.adaptation.room import check_training
from mlx_peft.config import suite
from mlx_peft.config.quantization import Quantization
from mlx_peft.config.schema import Augment, Experiment
from mlx_peft.config.step import Step
from mlx_peft.config.study import Planned
from mlx_peft.core.errors import UserError
from mlx_peft.core.sought import sought_beside
from mlx_peft.data import Dataset, open_dataset
from mlx_peft.data.looking import Watch, unwatched
from mlx_peft.protocols.loading import backend_of
from mlx_peft.studies.derive import check_folder as check_step
from mlx_peft.studies.derive import step_id
from mlx_peft.tasks.task import Task
from mlx_peft.training.bases import opener
from mlx_peft.training.here import Here, located
from mlx_peft.training.places import remembered
from mlx_peft.training.prepare import check_data, check_method, describe_splits
from mlx_peft.training.run import RunFolder, flatten, is_untested, run_id
from mlx_peft.training.start import beginning
from mlx_peft.training.tracking import check_trackers

Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True)
class SuiteRun:
    """A run that was checked against its data, its model and its folder: it may start.

    Attributes:
        step: what is made of the run ``of`` in place of a run of its own; None: a run.
        beside: a folder that paths of the experiment may be relative to.
        tests: whether it reads the test split, once; not where it is made to choose by.
        task: what its metrics are of.
    """

    name: str
    experiment: Experiment
    run_id: str
    folder: RunFolder
    task: Task
    step: Step | None = None
    of: SuiteRun | None = None
    beside: Path | None = None
    tests: bool = True

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do. Raises UserError where its result is damaged."""
        result = self.folder.read_result()
        return result is not None and not (self.tests and is_untested(result))


def check(
    planned: Sequence[Planned], out: Path, watch: Watch = unwatched, beside: Path | None = None
) -> list[SuiteRun]:
    """The runs of a suite with their identities and their folders below ``out``: see ``Checker``."""
    return Checker(out, watch, beside).check(planned)


class Checker:
    """Finds the identity and the folder of runs. Writes nothing.

    A finished run with the identity of one of them is that one, whatever its folder is called, and two trials that are
    one experiment are one run.
    """

    def __init__(self, out: Path, watch: Watch = unwatched, beside: Path | None = None) -> None:
        """
        Args:
            out: the study's folder.
            beside: a folder that paths may be relative to, the suite's.
        """
        self._out, self._beside = out, beside
        self._opened = Opened(watch)
        self._folders = finished_folders(out)
        self._tested: dict[str, str] = {}

    def check(self, planned: Sequence[Planned]) -> list[SuiteRun]:
        """The runs, in their order.

        Raises UserError that names the runs and what is wrong with each: no such data or weights, a method that does
        not fit the model, an adapter to begin with that does not fit the method, a folder that holds another run, two
        final runs that are the same experiment.
        """
        runs: list[SuiteRun] = []
        wrong: dict[str, list[str]] = {}
        mending: dict[str, None] = {}
        for run in planned:
            if run.step is not None and run.of in wrong:
                continue
            try:
                runs.append(self._ready(run, runs))
            except UserError as error:
                wrong[run.name] = [str(error).replace("\n", "\n  ")]
                mending |= dict.fromkeys(error.arguments)
        if wrong:
            names = len({run.name for run in planned})
            raise UserError(f"nothing was started:\n{suite.by_run(wrong, names)}", arguments=tuple(mending))
        return runs

    def _ready(self, run: Planned, made: Sequence[SuiteRun]) -> SuiteRun:
        """``made`` are those before it: a step is made of one of them."""
        name, experiment = run.name, run.experiment
        here = located(experiment, RunFolder(self._out / (run.of or name)), resume=True, beside=self._beside)
        dataset = self._opened.dataset(here)
        base = self._opened.base(here, dataset)
        check_fits(run, dataset, base)
        if run.step is not None:
            of = next(one for one in reversed(made) if one.tests and one.name == run.of)
            return made_of(of, run.step, self._out / name)
        splits = describe_splits(dataset)
        identity = run_id(experiment, splits)
        if not run.trial and (twin := self._tested.setdefault(identity, name)) != name:
            raise UserError(f"is the same experiment as {twin}")
        folder = self._folders.setdefault(identity, RunFolder(self._out / name))
        check_folder(folder, experiment, splits)
        if not folder.last.exists() and not folder.result.exists():  # else its values are there
            beginning(here, base, dataset)
        return SuiteRun(name, experiment, identity, folder, dataset.task, beside=self._beside, tests=not run.trial)


def check_fits(run: Planned, dataset: Dataset, base: Base) -> None:
    """Raises UserError where a run does not fit its images, its weights or the machine, or a step its run."""
    experiment, architecture, quantization = run.experiment, base.architecture, base.quantization
    check_trackers(experiment.track)
    check_data(experiment, dataset)
    if run.trial and dataset.val is None:
        raise UserError(f"tune chooses on the validation split, and {dataset.name} has none: set data.split.val")
    check_method(experiment, architecture, quantization)
    check_training(
        experiment,
        architecture,
        quantization,
        num_classes=len(dataset.classes),
        images=dataset.train.size,
        device=backend_of(experiment).computing(),
    )
    if run.step is not None:
        run.step.check(experiment, architecture, quantization)


def made_of(run: SuiteRun, step: Step, path: Path) -> SuiteRun:
    """A step of a run. Raises UserError where its folder holds something else."""
    identity = step_id(run.run_id, step)
    check_step(RunFolder(path), identity)
    return SuiteRun(path.name, run.experiment, identity, RunFolder(path), run.task, step, run)


class Opened:
    """Data sets and models that were opened, each once."""

    def __init__(self, watch: Watch = unwatched) -> None:
        self._watch = watch
        self._datasets: dict[str, Dataset | UserError] = {}
        self._bases: dict[tuple[str, Quantization | None, tuple[str, ...], str, int], Base | UserError] = {}

    def dataset(self, here: Here) -> Dataset:
        """The splits, which depend neither on batches nor on augmentation."""
        data = here.experiment.data
        alike = data.model_copy(update={"batch_size": 1, "augment": Augment(), "threads": 1})
        with remembered(data, here.found), sought_beside(data.root, here.beside):
            return once(self._datasets, alike.model_dump_json(), lambda: open_dataset(data, self._watch))

    def base(self, here: Here, dataset: Dataset) -> Base:
        """What the weights are, which are read, so that what is missing or does not fit is known."""
        experiment, classes = here.experiment, dataset.classes
        model, quantize = experiment.model, experiment.quantize
        seed = 0 if experiment.method.start is None else experiment.seed  # an adapter fits what was drawn from its own
        key = (model.model_dump_json(), quantize, classes, dataset.task.name, seed)

        def read() -> Base:
            merging = opener(experiment.backend)
            base = load_base(model, len(classes), seed, quantize, classes=classes, task=dataset.task, opener=merging)
            return base.without_tensors()

        with sought_beside(Path(os.path.expanduser(model.weights)), here.beside):
            return once(self._bases, key, read)


def once(memory: dict[Key, Value | UserError], key: Key, make: Callable[[], Value]) -> Value:
    """What ``make`` gave, or raised as UserError, the first time."""
    if key not in memory:
        try:
            memory[key] = make()
        except UserError as error:
            memory[key] = error
    if isinstance(found := memory[key], UserError):
        raise found
    return found


def finished_folders(out: Path) -> dict[str, RunFolder]:
    """The finished runs in a folder by their identities."""
    folders = [RunFolder(path.parent) for path in sorted(out.glob("*/result.json"))]
    return {str(result["run_id"]): folder for folder in folders if "run_id" in (result := folder.read_result() or {})}


def check_folder(folder: RunFolder, experiment: Experiment, splits: Mapping[str, Any]) -> None:
    """Raises UserError, with all that differs, where a folder holds anything but this run."""
    try:
        folder.check(experiment, resume=True)
    except UserError as error:
        if not folder.config.exists():
            raise
        raise UserError(f"{error}\nchoose another folder, or another name for the run", arguments=("out",)) from None
    if (result := folder.read_result()) is not None:
        before, now = flatten(result.get("splits") or {}), flatten(splits)
        differing = [key for key in before | now if before.get(key) != now.get(key)]
        if differing:
            lines = [f"\n  {key}: {before.get(key)} there, {now.get(key)} now" for key in differing]
            raise UserError(
                f"{folder.path} holds a run on other images: choose another folder" + "".join(lines), arguments=("out",)
            )
        if result.get("changes"):
            raise UserError(
                f"{folder.path} holds a run that was changed on the way: choose another folder", arguments=("out",)
            )
