"""The few things that both sides of a backend's border name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

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
        name: an accelerator's, as its driver has it; empty: it has none, or is a CPU.
        rounds: whether float32 is rounded to TF32 where it is multiplied, if that is asked for.
    """

    memory: int | None
    forms_attention: bool
    name: str = ""
    rounds: bool = False


@dataclass(frozen=True)
class Parameters:
    """How many numbers are trained, and how many there are."""

    adapter: int
    head: int
    total: int

    @property
    def trainable(self) -> int:
        return self.adapter + self.head
