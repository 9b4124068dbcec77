"""What a step holds and takes, for a person."""

from __future__ import annotations

from typing import Any

from mlx_peft.adaptation.estimate.devices import GIB
from mlx_peft.checks.estimating import Estimate
from mlx_peft.core.memory import gib
from mlx_peft.core.text import counted

MEANS = {
    "weights": "the model's, in the precision that it computes in",
    "adapter": "what the method adds",
    "optimizer": "moments, and what a method averages",
    "gradients": "of what is trained",
    "activations": "kept of the forward pass for the backward one",
    "workspace": "what is computed at that moment, and from what",
}
"""The parts of a step's memory."""


def estimated(found: Estimate) -> str:
    """The whole answer, as lines."""
    experiment, train = found.experiment, found.experiment.train
    parts = f", in {train.accumulate} parts" if train.accumulate > 1 else ""
    shared = f" and shared by {found.processes} processes" if found.processes > 1 else ""
    again = ", blocks computed again" if train.gradient_checkpointing else ""
    lines = [
        f"{experiment.model.name} ({found.base.architecture.dimensions}), {experiment.method.name}, batches of "
        f"{experiment.data.batch_size}{parts}{shared}, {train.precision}{again}, "
        f"{counted(found.base.classes, 'class')}, with {experiment.backend}",
        "",
        *(f"{name:<12} {gib(size):>9}  {MEANS[name]}" for name, size in found.step.memory.items() if size),
        f"{'together':<12} {gib(found.step.peak):>9}  at the moment when most is held",
        "",
        fitting(found),
        least(found),
    ]
    return "\n".join([*lines, *measured(found)])


def fitting(found: Estimate) -> str:
    """Whether it fits, and what would."""
    there = f"the {gib(found.memory)} of {found.device.name}"
    if found.fits:
        return f"fits: {100 * found.step.peak / found.memory:.0f} % of {there}"
    if found.change is None:
        return f"will not fit in {there}, in no parts of a batch and in no bits: take a smaller model or image_size"
    return f"will not fit in {there}; the smallest change that does: {' '.join(found.change.overrides)}"


def least(found: Estimate) -> str:
    """What no step takes less than."""
    operations = sum(found.step.operations.values())
    what = f"{operations / 1e12:,.3g} TFLOP and {found.step.traffic / GIB:,.3g} GiB through the memory"
    if found.seconds is None:
        return f"a step is at least {what}; how fast {found.device.name} is stands in no data sheet here"
    return f"a step takes at least {found.seconds:,.3g} s: {what}; real ones take longer"


def measured(found: Estimate) -> list[str]:
    """The same step on this machine, where it was measured."""
    if (here := found.measured) is None:
        return []
    off = 100 * (found.step.peak / here.peak - 1)
    return [
        "",
        f"measured here with {here.version}: {gib(here.peak)} at most, of which the estimate is {off:+.1f} % off; "
        f"{here.seconds:,.3g} s a step",
    ]


def facts(found: Estimate) -> dict[str, Any]:
    """What ``--json`` says."""
    return {
        "model": found.experiment.model.name,
        "method": found.experiment.method.name,
        "backend": found.experiment.backend,
        "batch_size": found.experiment.data.batch_size,
        "processes": found.processes,
        "classes": found.base.classes,
        "memory": found.step.memory,
        "peak": found.step.peak,
        "kept": found.step.kept,
        "flops": sum(found.step.operations.values()),
        "traffic": found.step.traffic,
        "device": {
            "name": found.device.name,
            "memory": found.memory,
            "bandwidth": found.device.bandwidth,
            "rates": found.device.rates,
            "source": found.device.source,
        },
        "seconds_at_least": found.seconds,
        "fits": found.fits,
        "change": None if found.change is None else list(found.change.overrides),
        "measured": None if found.measured is None else found.measured._asdict(),
    }
