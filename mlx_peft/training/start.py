"""What a run begins with beside its base: an adapter that was trained before, with an optimiser that is new."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from convert.adapters.peft import Adapter, read_adapter
from convert.base import Base
from convert.checkpoint import Checkpoint
from convert.fit import must_hold
from convert.head import Wanted, decide
from mlx_peft.adaptation.adapter import adapter_shapes, required
from mlx_peft.config.schema import Experiment
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.data import Dataset
from mlx_peft.protocols.model import Model
from mlx_peft.training.here import Here
from mlx_peft.training.places import Start
from mlx_peft.training.whereabouts import adapter_in, merged_digest
from mlx_peft.vit.parameters import is_head
from mlx_peft.vit.registry import find


@dataclass(frozen=True)
class Beginning:
    """An adapter that fits: what it was, the values that a model takes from it, and notes for a person."""

    start: Start
    tensors: Tensors
    notes: tuple[str, ...]


def started(model: Model, here: Here, base: Base, dataset: Dataset) -> tuple[Start | None, tuple[str, ...]]:
    """Gives a new model the values of the adapter that ``method.from`` names; returns what it was, and notes.

    A run that goes on has its values in its checkpoint, and the adapter need not be there any more.

    Raises:
        UserError: as ``beginning``.
    """
    if here.begun and here.experiment.method.start is not None:
        return here.start, ()
    found = beginning(here, base, dataset)
    if found is None:
        return None, ()
    model.load_adapter(model.adapter() | found.tensors)
    return found.start, found.notes


def beginning(here: Here, base: Base, dataset: Dataset) -> Beginning | None:
    """The adapter that ``method.from`` names, read and compared with its base and its data; None where it names none.

    Args:
        base: with its tensors, or without.

    Raises:
        UserError: where there is no such adapter, it was trained on another base, its tensors are not the method's, or
            its head cannot be kept and is to be.
    """
    experiment = here.experiment
    path = experiment.method.start
    if path is None:
        return None
    place = adapter_in(path)
    if place is None:
        raise UserError(f"method.from: {path} holds no adapter: name a finished run, or the folder of an adapter")
    adapter = read_adapter(place)
    start = Start(adapter=os.path.abspath(place), sha256=merged_digest(adapter))
    if here.start is not None and here.start.sha256 != start.sha256:
        raise UserError(
            f"method.from: {place} is another adapter than the one that the run began with: {here.start.sha256[:12]} "
            f"then, {start.sha256[:12]} now"
        )
    check_fits(adapter, place, experiment, base)
    own = {name: tensor for name, tensor in adapter.tensors.items() if not is_head(name)}
    head, note = head_of(adapter, place, experiment, base, dataset)
    differing = options(adapter, experiment)
    notes = (
        f"method.from: {len(own)} tensors of {place} ({start.sha256[:12]}); {note}; the optimiser is new",
        *([f"method.from: it was trained with {differing}"] if differing else []),
    )
    return Beginning(start, own | head, notes)


def check_fits(adapter: Adapter, place: Path, experiment: Experiment, base: Base) -> None:
    """Raises UserError where an adapter is for another base, or its tensors are not the experiment's, by name."""
    if adapter.base_sha256 not in (None, base.sha256):
        raise UserError(
            f"method.from: {place} was trained on weights {str(adapter.base_sha256)[:12]} ({adapter.source}), and "
            f"{base.source} has {base.sha256[:12]}"
        )
    classes = adapter.num_classes
    wanted = adapter_shapes(
        experiment.method, base.architecture, classes, base.quantization, experiment.qat, experiment.tokens
    )
    held = {name: tensor.shape for name, tensor in adapter.tensors.items()}
    wanted = required(experiment.method, wanted, held)
    if held != wanted and adapter.method.name == experiment.method.name and (differing := options(adapter, experiment)):
        raise UserError(f"method.from: {place} does not fit the method here: it was trained with {differing}")
    must_hold(held, wanted, f"method.from: {place}, trained by {adapter.method.name}, does not fit the method here")


def head_of(adapter: Adapter, place: Path, experiment: Experiment, base: Base, dataset: Dataset) -> tuple[Tensors, str]:
    """The adapter's head where ``model.head`` keeps it, its rows in the data's order, else nothing; and why.

    Raises UserError where it is to be kept and cannot be.
    """
    entry = find(experiment.model.name)
    whole = Checkpoint(
        base.name, str(place), base.architecture, base.preprocessing, entry.resampling, adapter.tensors,
        classes=adapter.classes, task=adapter.task,
    )  # fmt: skip
    head, _ = decide(
        experiment.model, Wanted(len(dataset.classes), dataset.classes, dataset.task), whole, base.architecture
    )
    if not head.kept:
        return {}, head.note
    rows = slice(None) if head.order is None else list(head.order)
    return {name: tensor[rows].copy() for name, tensor in adapter.tensors.items() if is_head(name)}, head.note


def options(adapter: Adapter, experiment: Experiment) -> str:
    """The options of the method in which an adapter's differ from an experiment's, in words."""
    before, now = (method.model_dump(mode="json") for method in (adapter.method, experiment.method))
    return ", ".join(
        f"{key} {before.get(key)} (now {value})"
        for key, value in now.items()
        if key != "from" and before.get(key) != value
    )
