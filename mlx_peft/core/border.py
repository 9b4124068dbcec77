"""The few things that both sides of the border between engine and backends name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

IGNORED = -1
"""The target of a row that fills a batch up: it adds nothing to the loss."""


def total_weight(targets: np.ndarray) -> float:
    """What a batch's loss is divided by: the images in it, or what they count where targets are soft.

    targets: int32 ``(batch,)`` or float32 ``(batch, classes)``; a row that fills up has IGNORED, or zeros. Of several
    labels ``(batch, classes, 2)``, of which each answer counts: all classes of an image as many as there are.
    """
    if targets.ndim == 1:
        return float(max(1, int(np.count_nonzero(targets != IGNORED))))
    weight: float = targets.astype(np.float64).sum().item()
    return weight or 1.0


Tensors = dict[str, np.ndarray]
"""Tensors by parameter name."""


def must_match(found: Tensors, expected: Mapping[str, tuple[int, ...]], optional: Collection[str] = ()) -> None:
    """Raises ValueError, with the names, where tensors have other names or shapes than these.

    Args:
        optional: names that may be there or not.
    """
    if differing := sorted((found.keys() ^ expected.keys()) - {*optional}):
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise ValueError(f"these tensors are missing or unknown: {', '.join(differing[:5])}{more}")
    for name, shape in expected.items():
        if name in found and found[name].shape != tuple(shape):
            raise ValueError(f"{name} has the shape {found[name].shape}, not {tuple(shape)}")


@dataclass(frozen=True)
class Device:
    """What a backend computes on, as far as it decides what fits.

    Attributes:
        memory: bytes of its own; None where it computes in the machine's.
        forms_attention: whether attention's probabilities are held whole, ``(batch, heads, tokens, tokens)``.
    """

    memory: int | None
    forms_attention: bool


@dataclass(frozen=True)
class Parameters:
    """How many numbers are trained, and how many there are."""

    adapter: int
    head: int
    total: int

    @property
    def trainable(self) -> int:
        return self.adapter + self.head
