"""A run's model quantised in simulation: calibrated on training images, measured on the run's own val or test split."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from mlx_peft.artifacts.ahead import must_merge
from mlx_peft.artifacts.images import fitted, run_images
from mlx_peft.artifacts.load import Loaded, load_run
from mlx_peft.codes.calibration import Choice, Errors, Plan, Ranges, choices, plan
from mlx_peft.config.schema import Data, Experiment
from mlx_peft.config.simulation import FLOAT, Simulation
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.core.text import counted
from mlx_peft.data import Split, eval_batches
from mlx_peft.data.leftout import unread_notes
from mlx_peft.protocols.model import Model
from mlx_peft.tasks.metrics import Metrics
from mlx_peft.tasks.task import Task
from mlx_peft.training.evaluate import answers, measured
from mlx_peft.training.predictions import Predictions, Recorder
from mlx_peft.training.run import RunFolder

BLOCK = 1024
"""Logits of so many images are in float64 at a time."""

RECORDED = 8
"""Calibration takes so many images at a time. It looks at their operands one after another, and keeps none."""


@dataclass(frozen=True)
class Images:
    """Training images that were calibrated on: how many, the seed of their choice, and their split's hash."""

    count: int
    seed: int
    sha256: str


@dataclass(frozen=True)
class Calibration:
    """The images that were looked at, and the choices made on them; none of either where activations stay float."""

    images: Images | None
    choices: dict[str, Choice]


@dataclass(frozen=True)
class Simulated:
    """One simulation, measured.

    Attributes:
        images: what was calibrated on; None where no activation is quantised.
        metrics: on the split.
        logits: ||a - b|| / ||b|| over the split's images, b being the run's own logits.
        agreement: share of the answers that are the run's own: see ``Task.decided``.
        weights, activations: SQNR in dB, by layer and by point: see ``codes.calibration.Plan``.
        said: of each of the split's images.
    """

    simulation: Simulation
    images: Images | None
    metrics: Metrics
    logits: float
    agreement: float
    weights: dict[str, float]
    activations: dict[str, float]
    said: Predictions


@dataclass(frozen=True)
class Report:
    """A run before and after.

    Attributes:
        task: the run's.
        before: the metrics of the run as it is, in float32.
        after: one for each simulation, in their order.
    """

    run: str
    split: str
    backend: str
    task: Task
    before: Metrics
    after: tuple[Simulated, ...]


def simulate_run(
    path: Path,
    simulations: Sequence[Simulation],
    split: Literal["val", "test"] = "test",
    backend: Literal["mlx", "torch"] | None = None,
    note: Callable[[str], object] = lambda text: None,
    *,
    weights: str | None = None,
    overrides: Iterable[str] = (),
) -> Report:
    """Merges a finished run in float32, quantises it in simulation, and evaluates it on one of its splits.

    Nothing is written, and nothing but images of the training split is calibrated on. What is in codes, or was trained
    through them, is turned into the weights that they stand for first. ``note`` is told what is being done, ``weights``
    says where those of its base are now, and ``overrides`` where its images are.

    Raises UserError where there is no such run or split, its method cannot be merged, or a calibration does not suit
    the model.
    """
    with _merging():
        must_merge(RunFolder(path).adapter)
    images, experiment = run_images(path, overrides)
    if not images.own:
        raise UserError(f"{images.data.root} has other images than the run: it is calibrated and measured on its own")
    dataset, loaded = images.dataset, load_run(path, backend, precision="float32", weights=weights)
    wanted, _ = fitted(images.split(split), images, loaded, "the run")
    train = images.split("train")
    for simulation in simulations:
        simulation.check(loaded.base.architecture)
    with _merging():
        tensors = loaded.model.merged(dequantize=True)

    evaluated = partial(_evaluated, loaded=loaded, split=wanted, data=experiment.data)
    measuring = f"evaluating on {counted(wanted.size, f'{split} image')}"
    note(f"{measuring}: float32")
    before, expected = evaluated(loaded.model)
    note("calibrating on training images")
    calibrations = calibrated(rebuilt(loaded, tensors), loaded, experiment, train, simulations)
    after = []
    for simulation, calibration in zip(simulations, calibrations, strict=True):
        planned = plan(simulation, loaded.base.architecture, tensors, calibration.choices)
        note(f"{measuring}: {simulation.name} simulated, {simulation.calibration}")
        metrics, said = evaluated(simulated(loaded, planned))
        after.append(
            Simulated(
                simulation,
                calibration.images,
                metrics,
                *compared(said.logits, expected.logits, dataset.task),
                planned.weights,
                planned.activations,
                said,
            )
        )
    for text in unread_notes(dataset.unread):
        note(text)
    return Report(str(path), split, loaded.recipe.backend, dataset.task, before, tuple(after))


@contextmanager
def _merging() -> Iterator[None]:
    """Has a refusal of the block say what the merging is for."""
    try:
        yield
    except UserError as error:
        raise UserError(f"quantisation is simulated on merged weights: {error}") from None


def _evaluated(model: Model, loaded: Loaded, split: Split, data: Data) -> tuple[Metrics, Predictions]:
    """The metrics of a model in the place of the one that was loaded, and what it says of each image."""
    recorder = Recorder(split)
    found = answers(model, eval_batches(split, data, loaded.preprocessing, loaded.image_size), recorder)
    return measured(found, loaded.task, len(loaded.classes)), recorder.predictions


def compared(logits: np.ndarray, expected: np.ndarray, task: Task) -> tuple[float, float]:
    """The relative distance of logits, and the share of answers that agree.

    Args:
        logits, expected: float32 ``(images, classes)``.
    """
    apart = whole = 0.0
    for first in range(0, len(logits), BLOCK):
        here, wide = logits[first : first + BLOCK], expected[first : first + BLOCK].astype(np.float64)
        apart += float(np.square(here - wide).sum())
        whole += float(np.square(wide).sum())
    agree = task.decided(logits) == task.decided(expected)
    return math.sqrt(apart / whole) if whole else math.nan, float(agree.mean())


def rebuilt(loaded: Loaded, tensors: Tensors) -> Model:
    """A plain model, with these tensors and no method."""
    return loaded.recipe.build_base(replace(loaded.base, tensors=tensors, quantization=None), len(loaded.classes))


def simulated(loaded: Loaded, planned: Plan) -> Model:
    """The model of a plan."""
    model = rebuilt(loaded, planned.tensors)
    model.simulate(planned.quantizers)
    return model


def calibrated(
    model: Model, loaded: Loaded, experiment: Experiment, train: Split, simulations: Sequence[Simulation]
) -> list[Calibration]:
    """Calibrates each simulation on its training images, prepared as for evaluation; those of the same ones at once."""
    found = [Calibration(None, {}) for _ in simulations]
    groups: dict[tuple[int, int], list[int]] = {}
    for index, simulation in enumerate(simulations):
        if simulation.activations < FLOAT:
            groups.setdefault((min(simulation.images, train.size), simulation.seed), []).append(index)
    data = experiment.data.model_copy(update={"batch_size": RECORDED})
    for (count, seed), members in groups.items():
        rows = np.random.default_rng(seed).choice(train.size, count, replace=False)
        split = train.take(np.sort(rows), "calibration")

        def look(observer: Ranges | Errors, split: Split = split) -> None:
            for batch in eval_batches(split, data, loaded.preprocessing, loaded.image_size):
                if batch.count:
                    model.record(batch.images[: batch.count], observer)

        look(ranges := Ranges(count, seed))
        several = [choices(simulations[index], loaded.base.architecture, ranges.operands) for index in members]
        look(Errors(several, seed))
        for index, one in zip(members, several, strict=True):
            found[index] = Calibration(Images(count, seed, split.sha256), one)
    return found
