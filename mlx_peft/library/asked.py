"""What a notebook gives, looked at where it is given, before anything is made of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Set
from typing import Any

from mlx_peft.core.errors import UserError, shown
from mlx_peft.library.answering import Answering


def must_be_model(model: Any) -> None:
    """Raises UserError for what is no model of this library."""
    if not isinstance(model, Answering):
        raise UserError(
            f"a model is wanted, as create_model and load return one, not {shown(model)} ({type(model).__name__})"
        )


def class_names(classes: Any) -> tuple[str, ...]:
    """The names of classes in their order, as text.

    Raises:
        UserError: they are not several things in an order, there is none, one is empty, or two are the same.
    """
    if isinstance(classes, int):
        raise UserError(f"classes should be their names, in the order of the head's rows, not {classes}: "
                        "how many there are is num_classes")  # fmt: skip
    if isinstance(classes, str | bytes | Mapping | Set) or not isinstance(classes, Iterable):
        raise UserError(f"classes should be a list of names, in the order of the head's rows, not {shown(classes)}")
    names = tuple(map(str, classes))
    if not names:
        raise UserError("classes should have one name at least: leave it out where there are none")
    if not all(name.strip() for name in names):
        raise UserError("classes should be names, and one of them is empty")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"classes should be one name each, and {shown(twice[0])} is there twice")
    return names


def rows(num_classes: int | None, names: tuple[str, ...]) -> int | None:
    """How many rows a head is to have; None: as many as there are.

    Raises:
        UserError: it is no number of classes, or not that of the names.
    """
    if num_classes is None:
        return len(names) or None
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise UserError(f"num_classes should be a whole number of at least 1, not {shown(num_classes)}")
    if names and len(names) != num_classes:
        raise UserError(f"num_classes is {num_classes}, and classes has {len(names)} names: leave num_classes out")
    return num_classes
