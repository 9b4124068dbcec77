"""What a classifier's logits mean: one class of several, or each class for itself; in transformers' words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mlx_peft.core.errors import UserError

KEY = "problem_type"
Problem = Literal["single_label_classification", "multi_label_classification"]
SINGLE: Problem = "single_label_classification"
MULTI: Problem = "multi_label_classification"


def problem(multi_label: bool) -> Problem:
    """Its name."""
    return MULTI if multi_label else SINGLE


def written(multi_label: bool) -> dict[str, str]:
    """The entry of a configuration; none where an image has one class, which is what its absence means to everybody."""
    return {KEY: MULTI} if multi_label else {}


def is_multi_label(config: Mapping[str, Any], path: Path) -> bool:
    """Whether an image may have several classes. Raises UserError for a problem that is no classification."""
    found = config.get(KEY)
    if found not in (None, SINGLE, MULTI):
        raise UserError(f"{path}: {KEY}: {found!r} is not supported (known: {SINGLE}, {MULTI})")
    return found == MULTI


def must_answer(classes: int, multi_label: bool, where: Path) -> None:
    """Raises UserError where a head is of one class, of which each image would have one: it says nothing.

    transformers takes such a head, of a model that states no problem, for one of a regression.
    """
    if classes == 1 and not multi_label:
        raise UserError(
            f"{where}: the head has one row and images have one class ({KEY}): there is nothing to choose from. A "
            "regression is not supported"
        )
