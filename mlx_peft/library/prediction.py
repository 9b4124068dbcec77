"""What a model says of images, as a value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from mlx_peft.core.errors import UserError
from mlx_peft.core.text import printable
from mlx_peft.tasks.task import Task

SHOWN = 10
"""How many answers of a long list its ``repr`` shows, as a notebook does that ends a cell with it."""


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """The answer to one image.

    Attributes:
        logits: float64 ``(classes,)``.
        classes: their names, in the order of the logits.
        task: what was asked: one class of an image, or several.
        shown: how many of the likeliest a person is shown.
        image: the file; None for one that came without.
    """

    logits: np.ndarray
    classes: tuple[str, ...]
    task: Task
    shown: int = 5
    image: str | None = None

    @property
    def probabilities(self) -> np.ndarray:
        """Of each class, in the order of ``classes``: they add up to 1, or of several labels each stands alone."""
        return self.task.probabilities(self.logits)

    def top(self, count: int | None = None) -> list[tuple[str, float]]:
        """The likeliest classes with their probabilities; None: as many as are shown."""
        count = self.shown if count is None else count
        best = np.argsort(-self.logits, kind="stable")[:count]
        probabilities = self.probabilities
        return [(self.classes[index], float(probabilities[index])) for index in best.tolist()]

    @property
    def names(self) -> tuple[str, ...]:
        """The likeliest classes, the first before the others."""
        return tuple(name for name, _ in self.top())

    @property
    def name(self) -> str:
        """The likeliest class."""
        return self.top(1)[0][0]

    @property
    def probability(self) -> float:
        """Of the likeliest class."""
        return self.top(1)[0][1]

    def __repr__(self) -> str:
        entries = self.task.answer(self.logits, self.classes, self.shown)
        told = ", ".join(" ".join(self.task.line(entry).split()) for entry in entries)
        return told if self.image is None else f"{printable(self.image)}: {told}"


class Predictions(Sequence[Prediction]):
    """The answers to several images, in their order."""

    def __init__(self, answers: Sequence[Prediction]) -> None:
        self._answers = tuple(answers)

    @property
    def names(self) -> tuple[str, ...]:
        """Each image's likeliest class."""
        return tuple(answer.name for answer in self)

    @property
    def probabilities(self) -> np.ndarray:
        """float64 ``(images, classes)``.

        Raises UserError where the images were not all asked about the same classes: a column would stand for several.
        """
        if len({answer.classes for answer in self}) > 1:
            raise UserError(
                "the answers are not all about the same classes, so that there is no array of their probabilities: ask "
                "each answer, [answer.probabilities for answer in answers]"
            )
        return np.stack([answer.probabilities for answer in self]) if self else np.empty((0, 0))

    @overload
    def __getitem__(self, which: int) -> Prediction: ...

    @overload
    def __getitem__(self, which: slice) -> Predictions: ...

    def __getitem__(self, which: int | slice) -> Prediction | Predictions:
        found = self._answers[which]
        return found if isinstance(found, Prediction) else Predictions(found)

    def __len__(self) -> int:
        return len(self._answers)

    def __iter__(self) -> Iterator[Prediction]:
        return iter(self._answers)

    def __repr__(self) -> str:
        more = len(self) - SHOWN
        lines = [*map(repr, self._answers[:SHOWN]), *([f"and {more:,} more"] if more > 0 else [])]
        return "\n".join(lines) or "no images"
