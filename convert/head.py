"""Which head a model begins with: the one that its weights have, or a new one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from convert.checkpoint import Checkpoint
from mlx_peft.config.schema import Model
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError, shown
from mlx_peft.core.text import counted
from mlx_peft.tasks.task import Task
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.shapes import heads

USUAL_CLASSES = 1000
"""A head has so many rows where neither the weights nor anybody else says how many."""

IMAGENET_1K = "70002b0ff5de60a3a17a82dbfcff291931f96225ddf941ad2e182fc39e183d15"
"""The SHA-256 of ImageNet-1k's WordNet identifiers in order, each followed by a line feed; the order is sorted."""


@dataclass(frozen=True)
class Head:
    """Which head a model begins with.

    Attributes:
        kept: whether it is the weights' own; else it is new.
        reason: why, for a person.
        order: for each row of the kept head, which of the weights' rows it is; None: the same.
        doubtful: whether it is new although the weights' might be for the same classes.
    """

    kept: bool
    reason: str
    order: tuple[int, ...] | None = None
    doubtful: bool = False

    @property
    def note(self) -> str:
        """A line for a person."""
        return f"head: {self.reason}"


OWN = Head(kept=True, reason="kept, the model's own")
"""Of a whole model, which nothing is to be made of."""


@dataclass(frozen=True)
class Wanted:
    """What a head is to answer.

    Attributes:
        count: the number of classes; None: as many as the weights' head has.
        classes: their names in the order of the rows; empty where they are unknown.
        task: what is asked; None where it is unknown.
    """

    count: int | None
    classes: tuple[str, ...] = ()
    task: Task | None = None


def rows_of(tensors: Tensors | None, architecture: Architecture) -> int:
    """The number of classes of the weights' heads; 0 where a head is missing, or two are not alike."""
    weights = [(tensors or {}).get(f"{head}.weight") for head in heads(architecture)]
    found = {0 if weight is None or not weight.ndim else len(weight) for weight in weights}
    return found.pop() if len(found) == 1 else 0


def decide(model: Model, wanted: Wanted, checkpoint: Checkpoint, architecture: Architecture) -> tuple[Head, int]:
    """The head to begin with, and its number of classes.

    The weights' own where ``model.head`` is ``keep``, and where nothing is said and its classes are known, by their
    names, to be those that are wanted, for the same task, or none are wanted; a new one everywhere else. The rows of a
    head whose classes are the wanted ones in another order are kept in the order that is wanted.

    Raises:
        UserError: where it is to be kept and there is none, or it has another number of classes, or a class that both
            name is another row in each and the others are not the same.
    """
    rows = rows_of(checkpoint.tensors, architecture)
    count = wanted.count if wanted.count is not None else rows or USUAL_CLASSES
    if model.head == "keep":
        return _kept(wanted, count, checkpoint, rows), count
    if model.head is None and wanted.count is None and rows:
        return OWN, count
    return _new_unless_known(model.head == "new", wanted, count, checkpoint, rows), count


def _new_unless_known(asked: bool, wanted: Wanted, count: int, checkpoint: Checkpoint, rows: int) -> Head:
    new = f"a new one for {counted(count, 'class')}"
    if asked:
        return Head(False, f"{new}, as asked")
    if checkpoint.tensors is None:
        return Head(False, f"{new}, as all weights are new")
    if rows != count or not rows:
        return Head(False, f"{new}, the weights have {f'one for {rows:,}' if rows else 'none'}")
    classes = _classes(checkpoint, wanted, rows)
    if not (classes and wanted.classes):
        why = f"{new}; the weights have one for as many, but whether they are the same is not known"
        return Head(False, why, doubtful=True)
    if (order := _order(classes, wanted.classes)) is None:
        return Head(False, f"{new}, the weights have one for others ({_difference(classes, wanted.classes)})")
    if wanted.task not in (None, checkpoint.task):
        return Head(False, f"{new}, the weights' answers another task, in which an image {checkpoint.task.image}")
    return _in_order(order, "kept, its classes are the data's")


def _kept(wanted: Wanted, count: int, checkpoint: Checkpoint, rows: int) -> Head:
    if not rows:
        raise UserError(f"model.head: keep, but {checkpoint.source} has no head to keep: write new, or leave it out")
    if rows != count:
        raise UserError(
            f"model.head: keep, but the head of {checkpoint.source} is for {counted(rows, 'class')}, and {count:,} "
            "are needed: write new, or leave it out"
        )
    theirs, ours = _classes(checkpoint, wanted, rows), wanted.classes
    if not (theirs and ours):
        return Head(True, f"kept as asked, whether its {rows:,} classes are the same is not known")
    if (order := _order(theirs, ours)) is not None:
        return _in_order(order, "kept as asked, its classes are the data's")
    places = {name: row for row, name in enumerate(theirs)}
    if moved := [(name, row) for row, name in enumerate(ours) if places.get(name, row) != row]:
        name, row = moved[0]
        raise UserError(
            f"model.head: keep, but row {places[name]} of the head of {checkpoint.source} is {shown(name)}, which is "
            f"class {row} of the data, and not all classes are the same: write new, or leave it out"
        )
    return Head(True, f"kept as asked, though the weights name other classes ({_difference(theirs, ours)})")


def _in_order(order: tuple[int, ...], reason: str) -> Head:
    if order == tuple(range(len(order))):
        return Head(True, reason)
    return Head(True, f"{reason} in another order: its rows are put in theirs", order)


def _classes(checkpoint: Checkpoint, wanted: Wanted, rows: int) -> Sequence[str]:
    """The names of the weights' classes as far as they are known: of published weights, where the wanted ones match."""
    if checkpoint.classes or not checkpoint.imagenet_1k or len(wanted.classes) != rows:
        return checkpoint.classes
    names = sorted(wanted.classes)
    digest = hashlib.sha256("".join(f"{name}\n" for name in names).encode("utf-8", "surrogateescape"))
    return names if digest.hexdigest() == IMAGENET_1K else ()


def _order(theirs: Sequence[str], ours: Sequence[str]) -> tuple[int, ...] | None:
    """For each of our classes its row among theirs; None where the names are not the same, or one stands for two."""
    if tuple(theirs) == tuple(ours):
        return tuple(range(len(ours)))
    places = {name: row for row, name in enumerate(theirs)}
    if len(places) < len(theirs) or places.keys() != set(ours) or len(ours) != len(theirs):
        return None
    return tuple(places[name] for name in ours)


def _difference(theirs: Sequence[str], ours: Sequence[str]) -> str:
    row = next(row for row, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
    return f"row {row} is {shown(theirs[row])}, and should be {shown(ours[row])}"
