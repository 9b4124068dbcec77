"""Several runs one after another, each in a process of its own: none is made twice, and none ends the others."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TypeVar

from convert.base import load_base
from mlx_peft.adaptation.room import check_training
from mlx_peft.config import suite
from mlx_peft.config.quantization import Quantization
from mlx_peft.config.schema import Augment, Data, Experiment
from mlx_peft.config.step import Step
from mlx_peft.core.errors import UserError
from mlx_peft.core.json_io import to_json
from mlx_peft.core.signals import handled
from mlx_peft.data import Dataset, open_dataset
from mlx_peft.data.looking import Watch, unwatched
from mlx_peft.protocols.loading import load_backend
from mlx_peft.studies.derive import check_folder as check_step
from mlx_peft.studies.derive import step_id
from mlx_peft.training.prepare import check_data, check_method, describe_splits
from mlx_peft.training.run import RunFolder, flatten, run_id
from mlx_peft.training.tracking import check_trackers
from mlx_peft.vit.architecture import Architecture

Status = Literal["finished", "failed", "interrupted"]
Key = TypeVar("Key")
Value = TypeVar("Value")
USER_ERROR, INTERRUPTED = 2, 130
"""A worker exits with these where the user is to blame, and where it was asked to stop."""


@dataclass(frozen=True)
class SuiteRun:
    """A run that was checked against its data, its model and its folder: it may start.

    Attributes:
        step: what is made of the run ``of`` in place of a run of its own; None: a run.
    """

    name: str
    experiment: Experiment
    run_id: str
    folder: RunFolder
    step: Step | None = None
    of: SuiteRun | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a run."""

    run: SuiteRun
    status: Status
    error: str | None = None


def check(planned: Sequence[suite.Planned], out: Path, watch: Watch = unwatched) -> list[SuiteRun]:
    """The runs of a suite with their identities and their folders below ``out``. Writes nothing.

    A finished run with the identity of one of them is that one, whatever its folder in ``out`` is called. Raises
    UserError that names the runs and what is wrong with each: no such data or weights, a method that does not fit the
    model, a folder that holds another run, two runs that are the same experiment.
    """
    opened = Opened(watch)
    finished = finished_folders(out)
    runs: list[SuiteRun] = []
    wrong: dict[str, list[str]] = {}
    mending: dict[str, None] = {}
    names: dict[str, str] = {}
    for run in planned:
        name, experiment = run.name, run.experiment
        if run.step is not None and run.of in wrong:
            continue
        try:
            dataset = opened.dataset(experiment.data)
            check_trackers(experiment.track)
            check_data(experiment, dataset)
            device = load_backend(experiment.backend).computing()
            architecture, quantization = opened.model(experiment, len(dataset.classes))
            check_method(experiment, architecture, quantization)
            check_training(
                experiment,
                architecture,
                quantization,
                num_classes=len(dataset.classes),
                images=dataset.train.size,
                device=device,
            )
            if run.step is not None:
                run.step.check(experiment, architecture, quantization)
                runs.append(made_of(next(made for made in runs if made.name == run.of), run.step, out / name))
                continue
            splits = describe_splits(dataset)
            identity = run_id(experiment, splits)
            if (twin := names.setdefault(identity, name)) != name:
                raise UserError(f"is the same experiment as {twin}")
            folder = finished.get(identity, RunFolder(out / name))
            check_folder(folder, experiment, splits)
            runs.append(SuiteRun(name, experiment, identity, folder))
        except UserError as error:
            wrong[name] = [str(error).replace("\n", "\n  ")]
            mending |= dict.fromkeys(error.arguments)
    if wrong:
        raise UserError(f"nothing was started:\n{suite.by_run(wrong, len(planned))}", arguments=tuple(mending))
    return runs


def made_of(run: SuiteRun, step: Step, path: Path) -> SuiteRun:
    """A step of a run. Raises UserError where its folder holds something else."""
    identity = step_id(run.run_id, step)
    check_step(RunFolder(path), identity)
    return SuiteRun(path.name, run.experiment, identity, RunFolder(path), step, run)


class Opened:
    """Data sets and models that were opened, each once."""

    def __init__(self, watch: Watch = unwatched) -> None:
        self._watch = watch
        self._datasets: dict[str, Dataset | UserError] = {}
        self._models: dict[
            tuple[str, Quantization | None, int], tuple[Architecture, Quantization | None] | UserError
        ] = {}

    def dataset(self, data: Data) -> Dataset:
        """The splits, which depend neither on batches nor on augmentation."""
        alike = data.model_copy(update={"batch_size": 1, "augment": Augment(), "threads": 1})
        return once(self._datasets, alike.model_dump_json(), lambda: open_dataset(data, self._watch))

    def model(self, experiment: Experiment, num_classes: int) -> tuple[Architecture, Quantization | None]:
        """Of the weights, which are read, so that what is missing or does not fit is known."""
        model, quantize = experiment.model, experiment.quantize
        key = (model.model_dump_json(), quantize, num_classes)

        def read() -> tuple[Architecture, Quantization | None]:
            base = load_base(model, num_classes, 0, quantize)
            return base.architecture, base.quantization

        return once(self._models, key, read)


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


def run(
    runs: Sequence[SuiteRun], out: Path, worker: Sequence[str], note: Callable[[str], None]
) -> Generator[Outcome, None, None]:
    """Makes the runs that are not finished, and says of each what became of it.

    ``worker`` is a command that reads an order in one line of JSON: ``{"experiment": ..., "out": ...}`` to train,
    resuming what it finds in the folder, or ``{"step": ..., "of": ..., "out": ...}`` to make something of the run in a
    folder. Where its input ends, this process is gone, and it stops. It writes ``{"error": ...}`` before it ends with
    ``USER_ERROR``, and ends with ``INTERRUPTED`` where it was asked to stop; its standard error is this process's.
    SIGINT, SIGTERM and SIGHUP are handed on to it and end the sweep.
    Raises UserError where another sweep works in ``out``.
    """
    with RunFolder(out).locked(), Relay().listening() as relay:
        for number, run in enumerate(runs, start=1):
            if run.folder.read_result() is not None:
                yield Outcome(run, "finished")
                continue
            if relay.requested:
                return
            if run.of is not None and run.of.folder.read_result() is None:
                yield Outcome(run, "failed", f"there is no finished {run.of.name} to make it of")
                continue
            note(f"[{number}/{len(runs)}] {run.name}")
            outcome = work(run, worker, relay)
            yield outcome
            if outcome.status == "interrupted":
                return


def work(run: SuiteRun, worker: Sequence[str], relay: Relay) -> Outcome:
    """One run in its process, to its end."""
    order: dict[str, Any] = {"out": str(run.folder.path)}
    if run.step is None or run.of is None:
        order["experiment"] = run.experiment.model_dump(mode="json")
    else:
        order |= {"step": run.step.model_dump(mode="json"), "of": str(run.of.folder.path)}
    # In a session of its own: from a terminal, Ctrl-C would reach both, and the relay's would be the second one, which
    # does not stop a run but kills it.
    with (
        subprocess.Popen(
            worker, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        ) as process,
        relay.to(process),
    ):
        assert process.stdin and process.stdout
        with suppress(BrokenPipeError):  # it ended at once, and its status says why
            process.stdin.write(f"{to_json(order, indent=None, ascii=True)}\n")
            process.stdin.flush()
        reply = process.stdout.read()
        process.wait()
    if process.returncode == 0 and run.folder.read_result() is not None:
        return Outcome(run, "finished")
    if process.returncode == INTERRUPTED or relay.requested:
        return Outcome(run, "interrupted")
    return Outcome(run, "failed", explain(reply, process.returncode))


def explain(reply: str, status: int) -> str:
    """Why a worker failed: its own words, or how it ended."""
    if status == USER_ERROR and reply:
        return str(json.loads(reply)["error"])
    if status < 0:
        hint = ", perhaps for want of memory" if -status == signal.SIGKILL else ""
        return f"its process was ended by {signal.Signals(-status).name}{hint}"
    return f"its process ended with status {status}; what it said is above"


class Relay:
    """Hands SIGINT, SIGTERM and SIGHUP on to the process that is at work, and remembers that one came."""

    def __init__(self) -> None:
        self.requested = False
        self._process: subprocess.Popen[str] | None = None

    @contextmanager
    def listening(self) -> Iterator[Relay]:
        """Listens while the block runs, in the main thread."""
        with handled(self._hand_on):
            yield self

    @contextmanager
    def to(self, process: subprocess.Popen[str]) -> Iterator[None]:
        """Signals go to this process while the block runs; one that came just before it goes there first."""
        self._process = process
        try:
            if self.requested:
                process.terminate()
            yield
        finally:
            self._process = None

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if self._process is not None:
            self._process.send_signal(number)
