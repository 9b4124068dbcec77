"""Adapters in memory, the least recently used of which make room for others."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import numpy as np

from convert.adapters.peft import Adapter
from mlx_peft.adaptation.forms import Form, form_of
from mlx_peft.adaptation.terms import Array, Entering, terms
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.library.entries import Entry
from mlx_peft.library.mixer import Mixer
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.shapes import heads


@dataclass(frozen=True)
class Resident:
    """An adapter in memory: its terms on the device, and its heads.

    Attributes:
        entry: what it says of itself.
        held: its terms, as the mixer has them.
        form: of its terms.
        prompts: at the blocks that some of its prompts enter or leave.
        heads: weight ``(classes, width)`` and bias ``(classes,)`` of each.
        nbytes: of all these.
    """

    entry: Entry
    held: Any
    form: Form
    prompts: tuple[Entering, ...]
    heads: tuple[tuple[Array, Array], ...]
    nbytes: int

    def logits(self, vectors: np.ndarray) -> np.ndarray:
        """What the heads read, ``(batch, heads, dim)``, to logits, float32 ``(batch, classes)``: two heads' mean."""
        with np.errstate(over="ignore", invalid="ignore"):  # whoever makes answers of them looks
            each = [vectors[:, at] @ weight.T + bias for at, (weight, bias) in enumerate(self.heads)]
            total: np.ndarray = sum(each[1:], each[0]) / np.float32(len(each))
        return total


def made_resident(entry: Entry, adapter: Adapter, architecture: Architecture, mixer: Mixer) -> Resident:
    """An adapter put into memory. Raises UserError where its numbers, finite each, are not so together."""
    with np.errstate(all="ignore"):
        found = terms(adapter.method, architecture, adapter.tensors, mixer)
    own = tuple(_head(adapter.tensors, head) for head in heads(architecture))
    arrays = {id(array): array for layer in found.layers.values() for array in layer.values()}
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise UserError(
            f"{entry.place}: products of its tensors are not finite: its training diverged, or it is damaged"
        )
    nbytes = sum(array.nbytes for array in [*arrays.values(), *(array for head in own for array in head)])
    return Resident(entry, mixer.hold(found.layers), form_of(found.layers), found.prompts, own, nbytes)


def _head(tensors: Tensors, name: str) -> tuple[Array, Array]:
    """Copies: a file's own memory may change with it."""
    return np.array(tensors[f"{name}.weight"]), np.array(tensors[f"{name}.bias"])


class Residents:
    """The adapters in memory by name, the least recently used first.

    Args:
        budget: bytes that they may have together; None: any number.
    """

    def __init__(self, budget: int | None) -> None:
        self.budget = budget
        self._found: OrderedDict[str, Resident] = OrderedDict()

    @property
    def names(self) -> tuple[str, ...]:
        """The least recently used first."""
        return tuple(self._found)

    @property
    def nbytes(self) -> int:
        """Of all together."""
        return sum(resident.nbytes for resident in tuple(self._found.values()))  # a copy: other threads change it

    def get(self, name: str) -> Resident | None:
        """The one of a name, which is the most recently used then."""
        if name in self._found:
            self._found.move_to_end(name)
        return self._found.get(name)

    def put(self, resident: Resident) -> None:
        """Takes one in, as the most recently used."""
        self._found[resident.entry.name] = resident

    def drop(self, name: str) -> None:
        """Lets one go, where it is there."""
        self._found.pop(name, None)

    def make_room(self, needed: Container[str]) -> bool:
        """Lets the least recently used go until the rest is within the budget, but for what is needed.

        Returns whether it is within the budget then.
        """
        for name in [name for name in self._found if name not in needed]:
            if self.fits():
                break
            self.drop(name)
        return self.fits()

    def fits(self) -> bool:
        """Whether what is there is within the budget."""
        return self.budget is None or self.nbytes <= self.budget
