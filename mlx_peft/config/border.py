"""The few things that both sides of the border between engine and backends name."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

IGNORED = -1
"""The target of a row that fills a batch up: it adds nothing to the loss."""

Tensors = dict[str, np.ndarray]
"""Tensors by parameter name."""


@dataclass(frozen=True)
class Parameters:
    """How many numbers are trained, and how many there are."""

    adapter: int
    head: int
    total: int

    @property
    def trainable(self) -> int:
        return self.adapter + self.head
