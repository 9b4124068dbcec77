"""The head of an adapter that is made of several: one of theirs, their mean, or all of them beside one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convert.files import listed
from mlx_peft.artifacts.ingredients import Opened
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError, suggest
from mlx_peft.core.text import named, printable
from mlx_peft.tasks.task import Task
from mlx_peft.vit.parameters import is_head

MEAN, JOIN = "mean", "join"


@dataclass(frozen=True)
class Head:
    """A classifier.

    Attributes:
        tensors: by name; both heads of a distilled model.
        classes: names of the rows; empty where they are unknown.
        whose: ``mean``, ``join``, or the name of the adapter that it is of.
    """

    tensors: Tensors
    classes: tuple[str, ...]
    task: Task
    whose: str


def head_of(found: Sequence[Opened], wanted: str | None) -> Head:
    """The head that a user wants: nobody else can know which.

    Args:
        wanted: the name of an adapter, or its path as it was given; ``mean``: their mean by the adapters' weights;
            ``join``: the rows of all; None where there is one adapter, or all have the same head.

    Raises:
        UserError: it was not said which, or there is no such adapter, or the classes do not allow it.
    """
    if wanted == MEAN:
        return _mean(found)
    if wanted == JOIN:
        return _joined(found)
    if wanted is None:
        first, *others = map(_own, found)
        if not all(_same(first, other) for other in others):
            names = ", ".join(f"{one.name} has {named(one.adapter.num_classes, one.adapter.classes)}" for one in found)
            raise UserError(
                f"each of these adapters has a head of its own: {names}. Say which the result is to have: the name of "
                f"one of them, {MEAN} where their classes are the same, or {JOIN} for the classes of all",
                arguments=("head",),
            )
        return first
    fitting = [one for one in found if printable(wanted) == one.name or wanted == str(one.given)]
    if not fitting:
        known = [one.name for one in found]
        raise UserError(
            f"no adapter here is called {wanted!r}{suggest(wanted, known)}; the head can be that of {listed(known)}, "
            f"or {MEAN}, or {JOIN}",
            arguments=("head",),
        )
    if len(fitting) > 1 and not all(_same(_own(fitting[0]), _own(other)) for other in fitting[1:]):
        places = listed(str(one.given) for one in fitting)
        raise UserError(f"several adapters are called {wanted!r}: name the folder, {places}", arguments=("head",))
    return _own(fitting[0])


def _own(one: Opened) -> Head:
    tensors = {name: tensor for name, tensor in one.adapter.tensors.items() if is_head(name)}
    return Head(tensors, one.adapter.classes, one.adapter.task, one.name)


def _same(one: Head, other: Head) -> bool:
    return (
        (one.classes, one.task, one.tensors.keys()) == (other.classes, other.task, other.tensors.keys())
        and all(np.array_equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    )  # fmt: skip


def _mean(found: Sequence[Opened]) -> Head:
    """sum_i w_i H_i / sum_i w_i, rows of the same class with one another, in the order of the first."""
    heads = [_own(one) for one in found]
    _must_go_together(found)
    total = sum(one.weight for one in found)
    if not total:
        raise UserError("the adapters' weights add up to 0, so that their heads have no mean", arguments=("head",))
    first = heads[0]
    tensors = {name: np.zeros(tensor.shape, np.float64) for name, tensor in first.tensors.items()}
    for one, head in zip(found, heads, strict=True):
        rows = _rows(first.classes, head.classes)
        if rows is None or any(head.tensors[name].shape != tensors[name].shape for name in tensors):
            raise UserError(
                f"{found[0].name} has {named(found[0].adapter.num_classes, first.classes)} and {one.name} "
                f"{named(one.adapter.num_classes, head.classes)}: heads of different classes have no mean; name the "
                f"adapter whose head is wanted, or {JOIN} for the classes of all",
                arguments=("head",),
            )
        for name in tensors:
            tensors[name] += one.weight / total * head.tensors[name][rows]
    means = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    return Head(means, first.classes, first.task, MEAN)


def _rows(classes: Sequence[str], others: Sequence[str]) -> list[int] | slice | None:
    """Where a head with the ``others`` has each of the classes; None where they are not the same."""
    if not classes and not others:
        return slice(None)  # nobody has named them: the user says that they are the same
    if sorted(classes) != sorted(others) or len({*classes}) < len(classes):
        return None
    return [others.index(name) for name in classes]


def _joined(found: Sequence[Opened]) -> Head:
    heads = [_own(one) for one in found]
    _must_go_together(found)
    classes = [name for head in heads for name in head.classes]
    if nameless := [one.name for one, head in zip(found, heads, strict=True) if not head.classes]:
        raise UserError(f"the classes of {nameless[0]} have no names, so that their rows cannot be told from others")
    if twice := sorted({name for name in classes if classes.count(name) > 1}):
        raise UserError(
            f"several heads have the class {listed(map(repr, twice))}: heads of the same classes have a {MEAN}, and "
            "are not joined",
            arguments=("head",),
        )
    tensors = {name: np.concatenate([head.tensors[name] for head in heads]) for name in heads[0].tensors}
    return Head(tensors, tuple(classes), heads[0].task, JOIN)


def _must_go_together(found: Sequence[Opened]) -> None:
    """Raises UserError where they answer different questions, or read what different models say."""
    first = found[0]
    for one in found[1:]:
        if _read(one) != _read(first):
            widths = " and ".join(f"of {other.name} {_read(other)}" for other in (first, one))
            raise UserError(f"these heads read what different models say: {widths} (each with its width)")
        if one.adapter.task != first.adapter.task:
            raise UserError(
                f"to {first.name} an image {first.adapter.task.image}, and to {one.name} an image "
                f"{one.adapter.task.image}: these heads do not go together; name the adapter whose head is wanted",
                arguments=("head",),
            )


def _read(one: Opened) -> dict[str, int]:
    """What an adapter's heads read: the width of each."""
    return {name: tensor.shape[1] for name, tensor in _own(one).tensors.items() if tensor.ndim > 1}
