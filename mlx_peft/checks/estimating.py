"""An estimate of a step beside a device, and beside the same step on this machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from convert.base import architecture_of, load_base
from mlx_peft.adaptation.estimate import devices
from mlx_peft.adaptation.estimate.devices import Device
from mlx_peft.adaptation.estimate.smaller import Change, smaller
from mlx_peft.adaptation.estimate.step import Step, least_seconds, step
from mlx_peft.checks import turns
from mlx_peft.config.quantization import Quantization
from mlx_peft.config.schema import Experiment
from mlx_peft.core import memory
from mlx_peft.core.errors import UserError
from mlx_peft.data.registry import find
from mlx_peft.protocols.loading import load_backend
from mlx_peft.training.bases import described
from mlx_peft.training.prepare import check_equal_shares, check_method
from mlx_peft.vit.architecture import Architecture

CLASSES = 100
"""Of a data set that does not say how many it has before it is opened."""


@dataclass(frozen=True)
class Base:
    """What is known of the model before anything of it is loaded."""

    architecture: Architecture
    quantization: Quantization | None
    classes: int


class Measured(NamedTuple):
    """What a step on this machine came to."""

    peak: int
    kept: int | None
    seconds: float
    version: str


@dataclass(frozen=True)
class Estimate:
    """What is said of an experiment.

    Attributes:
        memory: bytes of the device.
        seconds: that no step takes less than; None: not known.
        change: the smallest that fits; None where none is needed, or none of them is enough.
        processes: that share the batch, each on such a device of its own.
        measured: the same step, of random images and weights; None: it was not measured.
    """

    experiment: Experiment
    base: Base
    step: Step
    device: Device
    memory: int
    seconds: float | None
    change: Change | None = None
    measured: Measured | None = None
    processes: int = 1

    @property
    def fits(self) -> bool:
        """Whether the device holds it."""
        return self.step.peak <= self.memory


def base_of(experiment: Experiment, classes: int | None = None) -> Base:
    """The model of an experiment; ``classes`` where the data set does not say how many it has.

    Raises UserError where the experiment cannot be trained.
    """
    model = experiment.model
    architecture = architecture_of(model, described)
    quantization = experiment.quantize or (None if model.is_fetched else described(model).quantization)
    check_method(experiment, architecture, quantization)
    return Base(architecture, quantization, classes or find(experiment.data.name).classes or CLASSES)


def device_of(experiment: Experiment, name: str | None = None, size: int | None = None) -> Device:
    """The device of a name, or this machine with so many bytes; None: with those that it has."""
    found = devices.find(name) if name is not None else _own(experiment)
    return found if size is None else replace(found, memory=size)


def _own(experiment: Experiment) -> Device:
    """What the experiment's backend computes on here."""
    backend = load_backend(experiment.backend)
    backend.use(experiment.device)
    here = backend.computing()
    size = memory.physical() if here.memory is None else here.memory
    if not here.name:
        return Device("this machine", "cpu", size)
    known = devices.recognised(here.name, size if here.memory is not None else None)
    if known is not None:
        return replace(known, memory=size)
    return Device(here.name, "metal" if here.memory is None else "cuda", size)


def estimate(experiment: Experiment, base: Base, device: Device, processes: int = 1) -> Estimate:
    """The step of an experiment on a device, and where it does not fit the smallest change with which it does.

    Of several ``processes`` it is the step of one. Raises UserError where they cannot have equal shares of a batch.
    """
    check_equal_shares(experiment, processes)

    def stepped(experiment: Experiment) -> Step:
        quantization = base.quantization or experiment.quantize
        check_method(experiment, base.architecture, quantization)
        images = experiment.data.batch_size // processes
        return step(
            experiment, base.architecture, base.classes, images=images, quantization=quantization, on=device.kind
        )

    found = stepped(experiment)
    seconds = least_seconds(found, device, experiment.train.precision)
    change = None
    if found.peak > device.memory:
        change = smaller(experiment, device.memory, lambda changed: stepped(changed).peak, processes)
    return Estimate(experiment, base, found, device, device.memory, seconds, change, processes=processes)


def measure(found: Estimate) -> Measured:
    """A step of an experiment here, of random weights and images, in a process of its own.

    Raises UserError where this machine has not as much memory as it is estimated to need.
    """
    there = _own(found.experiment).memory
    if found.step.peak > there:
        raise UserError(
            f"the step needs about {memory.gib(found.step.peak)}, and this machine has {memory.gib(there)}: it cannot "
            "be measured here",
            arguments=("measured",),
        )
    changes = {
        "model": found.experiment.model.model_copy(update={"weights": "none"}),
        "quantize": found.base.quantization,
        "data": found.experiment.data.model_copy(
            update={"batch_size": found.experiment.data.batch_size // found.processes}
        ),
    }
    experiment, classes = found.experiment.model_copy(update=changes), found.base.classes
    settings = experiment.model_dump(mode="json")
    with turns.workers("mlx_peft.checks.estimating", [experiment.backend], [settings, classes]) as workers:
        return Measured(**workers[experiment.backend].ask("step"))


def work(experiment: Experiment, classes: int) -> Callable[[str], Any]:
    """What the process of a measurement answers: the figures of ``Measured``."""
    backend = load_backend(experiment.backend)
    backend.use(experiment.device)
    base = load_base(experiment.model, classes, experiment.seed, experiment.quantize)
    trainer = backend.build_trainer(experiment, classes, base)
    size, random, batch = base.architecture.img_size, np.random.default_rng(0), experiment.data.batch_size
    images = random.integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    targets = random.integers(0, classes, batch, dtype=np.int32)
    part = batch // experiment.train.accumulate

    def run() -> None:
        trainer.train_step(images, targets, 1e-3)
        backend.synchronize()

    def figures() -> dict[str, Any]:
        run()  # the first step makes the optimiser's moments, and what is compiled
        return {
            "seconds": turns.seconds(run),
            "peak": backend.step_bytes(trainer, run),
            "kept": backend.saved_bytes(trainer, images[:part], targets[:part]),
            "version": backend.version(),
        }

    del base
    return lambda request: figures()


if __name__ == "__main__":
    turns.serve(lambda: work(Experiment.model_validate((given := json.loads(sys.argv[2]))[0]), given[1]))
