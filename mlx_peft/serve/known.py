"""What is served under a name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mlx_peft.artifacts.answering import ManyAdapters, OneModel
from mlx_peft.library.entries import Coming
from mlx_peft.tasks.task import Task
from mlx_peft.vit.architecture import Preprocessing


@dataclass(frozen=True, eq=False)
class Known:
    """A model that can be asked: an adapter on the base that all share, or a whole model.

    Attributes:
        base: the model's name, as timm has it.
        method: its name; None of a whole model.
        classes: in the order of the logits.
        recipe: how its images are cropped.
        metrics: of its run, of the images that were held out; none where there is no run.
        bytes: of its file.
    """

    name: str
    base: str
    method: str | None
    classes: tuple[str, ...]
    task: Task
    recipe: Preprocessing
    metrics: Mapping[str, float] = field(default_factory=dict)
    bytes: int = 0


Row = Known | None
"""Whom an image asks; None: the bare base, for its features."""


GoOn = Callable[[], bool]


def always() -> bool:
    return True


class Served(Protocol):
    """Whatever answers. ``answer``, ``warm``, the steps of ``load`` and ``unload`` belong to the device's thread.

    Attributes:
        base: the model's name, as timm has it.
        image_size: pixels of a side.
        dim: of features.
        usual: how images of the bare base are cropped; None where it cannot be asked.
        folder: from which adapters are loaded; None where none can be.
        asked: what explains its answers; None where nothing does.
    """

    @property
    def base(self) -> str: ...

    @property
    def image_size(self) -> int: ...

    @property
    def dim(self) -> int: ...

    @property
    def usual(self) -> Preprocessing | None: ...

    @property
    def folder(self) -> Path | None: ...

    @property
    def asked(self) -> ManyAdapters | OneModel | None: ...

    @property
    def names(self) -> Sequence[str]:
        """Of all that are served, in the order of the alphabet."""
        ...

    def get(self, name: str) -> Known | None:
        """What is served under a name; None where nothing is."""
        ...

    def loaded(self, name: str) -> bool:
        """Whether it is in memory now."""
        ...

    def answer(self, images: np.ndarray, rows: Sequence[Row], headed: Sequence[bool]) -> Sequence[np.ndarray]:
        """Each row's logits, float32 ``(classes,)``; of one not ``headed``, what the head reads, ``(dim,)``.

        Args:
            images: uint8 ``(batch, image_size, image_size, 3)``.
        """
        ...

    def warm(self, sizes: Iterable[int], go_on: GoOn = always) -> Sequence[str]:
        """Answers batches of these sizes, so that nothing is compiled later; notes for a person.

        Args:
            go_on: is asked before each; where it says no, nobody waits for the rest.
        """
        ...

    def read(self, name: str) -> Coming:
        """An adapter of the folder, to be loaded. In any thread: others are answered meanwhile.

        Raises Problem, 404, 409 or 422.
        """
        ...

    def load(self, coming: Coming) -> Iterator[None]:
        """Takes in an adapter that was read, in the place of one of its name, step by step: others are answered
        between two. Until the device has computed what is new to it in the new one, the old one answers.

        Raises Problem, 409 or 422; all is as it was then, and where the device fails too.
        """
        ...

    def unload(self, name: str) -> None:
        """Lets one go. Raises Problem, 404 or 409."""
        ...


def metrics_of(result: Any) -> dict[str, float]:
    """The metrics of a ``result.json``, of the test images, else of the validation's; none where it is another file."""
    splits = result.get("metrics") if isinstance(result, dict) else None
    found: Any = (
        next((splits[name] for name in ("test", "val") if splits.get(name)), {}) if isinstance(splits, dict) else {}
    )
    numbers = found.items() if isinstance(found, dict) else ()
    return {str(name): float(value) for name, value in numbers if isinstance(value, int | float)}
