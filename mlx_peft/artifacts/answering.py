"""Whoever is asked about images: one model, or a bank of adapters in which each image has its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from convert.base import Base
from mlx_peft.artifacts.load import Loaded
from mlx_peft.artifacts.recipe import Recipe
from mlx_peft.core.text import printable
from mlx_peft.library.bank import Bank
from mlx_peft.library.entries import Entry
from mlx_peft.protocols import model as protocols
from mlx_peft.tasks.logits import finite
from mlx_peft.tasks.task import Task
from mlx_peft.vit.architecture import Preprocessing

TOGETHER, MOST = 8, 2**27
"""Batches of a bank's images that are held together, so that each adapter's can be answered side by side; and at most
so many bytes."""


class Asked(Protocol):
    """Whoever answers. Images cross as uint8 ``(batch, size, size, 3)``, with an adapter's name each."""

    @property
    def image_size(self) -> int: ...

    @property
    def batch_size(self) -> int:
        """Images that are answered at once."""
        ...

    @property
    def part(self) -> int:
        """Images that are best given together: a number of batches."""
        ...

    @property
    def fills(self) -> bool:
        """Whether a last part is to have as many rows as the others, since another size is compiled anew."""
        ...

    @property
    def columns(self) -> Sequence[str]:
        """The keys that entries of its answers have."""
        ...

    def check_room(self, images: int) -> None:
        """Raises UserError where so many images at once cannot be answered in the memory that there is."""

    def preprocessing(self, adapter: str | None) -> Preprocessing:
        """How the adapter's images are cropped."""
        ...

    def logits(self, images: np.ndarray, adapters: Sequence[str | None]) -> Sequence[np.ndarray]:
        """Each image's, float32 ``(classes,)`` of its own adapter."""
        ...

    def features(self, images: np.ndarray, adapters: Sequence[str | None]) -> np.ndarray:
        """What each image's head reads, float32 ``(batch, dim)``."""
        ...

    def entries(self, logits: np.ndarray, adapter: str | None, top: int, of: str) -> list[dict[str, Any]]:
        """What a person is told of an image's logits; see ``Task.answer``. Raises UserError where one is not finite."""
        ...

    def line(self, entry: Mapping[str, Any], adapter: str | None) -> str:
        """An entry in a line."""
        ...


@dataclass(frozen=True, eq=False)
class OneModel:
    """A model with or without an adapter in it. No image has an adapter of its own.

    Attributes:
        classes: names of the head's rows; none where nobody is told of classes.
    """

    model: protocols.Model
    base: Base
    recipe: Recipe
    classes: tuple[str, ...]
    task: Task

    @classmethod
    def of(cls, loaded: Loaded) -> OneModel:
        """A run's, an adapter's or a whole model's."""
        return cls(loaded.model, loaded.base, loaded.recipe, loaded.classes, loaded.task)

    @property
    def image_size(self) -> int:
        return self.base.architecture.img_size

    @property
    def batch_size(self) -> int:
        return self.recipe.batch_size

    @property
    def part(self) -> int:
        return self.batch_size

    @property
    def fills(self) -> bool:
        return True

    @property
    def columns(self) -> Sequence[str]:
        return self.task.entry

    def check_room(self, images: int) -> None:
        self.recipe.check_room(self.base, max(len(self.classes), 1), images)

    def preprocessing(self, adapter: str | None) -> Preprocessing:
        return self.base.preprocessing

    def logits(self, images: np.ndarray, adapters: Sequence[str | None]) -> Sequence[np.ndarray]:
        return list(self.model.logits(images))

    def features(self, images: np.ndarray, adapters: Sequence[str | None]) -> np.ndarray:
        mean: np.ndarray = self.model.vectors(images).mean(axis=1)
        return mean

    def entries(self, logits: np.ndarray, adapter: str | None, top: int, of: str) -> list[dict[str, Any]]:
        return self.task.answer(finite(logits, f"the model for {of}"), self.classes, top)

    def line(self, entry: Mapping[str, Any], adapter: str | None) -> str:
        return self.task.line(entry)


@dataclass(frozen=True, eq=False)
class ManyAdapters:
    """A bank: each image has an adapter of its own, or asks the bare base for its features."""

    bank: Bank
    base: Base
    recipe: Recipe

    @property
    def image_size(self) -> int:
        return self.base.architecture.img_size

    @property
    def batch_size(self) -> int:
        return self.recipe.batch_size

    @property
    def part(self) -> int:
        batch = 3 * self.image_size**2 * self.batch_size
        return self.batch_size * max(1, min(TOGETHER, MOST // batch))

    @property
    def fills(self) -> bool:
        return False

    @property
    def columns(self) -> Sequence[str]:
        tasks = [self.bank[name].adapter.task for name in self.bank.names]
        return tuple(dict.fromkeys(column for task in tasks for column in task.entry))

    def check_room(self, images: int) -> None:
        self.recipe.check_room(self.base, 1, images)

    def preprocessing(self, adapter: str | None) -> Preprocessing:
        usual = self.base.preprocessing
        return usual if adapter is None else self.bank[adapter].recipe(usual)

    def logits(self, images: np.ndarray, adapters: Sequence[str | None]) -> Sequence[np.ndarray]:
        order = _side_by_side(adapters)
        found = self.bank.logits(images[order], [adapters[at] for at in order], self.batch_size)
        return [found[at] for at in np.argsort(order)]

    def features(self, images: np.ndarray, adapters: Sequence[str | None]) -> np.ndarray:
        order = _side_by_side(adapters)
        found = self.bank.features(images[order], [adapters[at] for at in order], self.batch_size)
        return found[np.argsort(order)]

    def entries(self, logits: np.ndarray, adapter: str | None, top: int, of: str) -> list[dict[str, Any]]:
        entry = self._entry(adapter)
        asked = f"the adapter {printable(entry.name)} for {of}"
        return entry.adapter.task.answer(finite(logits, asked), entry.classes, top)

    def line(self, entry: Mapping[str, Any], adapter: str | None) -> str:
        return self._entry(adapter).adapter.task.line(entry)

    def _entry(self, adapter: str | None) -> Entry:
        assert adapter is not None  # the bare base has no classes
        return self.bank[adapter]


def _side_by_side(adapters: Sequence[str | None]) -> list[int]:
    """The rows in an order in which those of an adapter follow one another: few adapters then share a batch."""
    return sorted(range(len(adapters)), key=lambda at: adapters[at] or "")
