"""What a method answers: how it is put into a model and merged, and what it wants of the training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_peft.backend.methods.importance import Importance
from mlx_peft.backend.methods.targets import replace, unwrap
from mlx_peft.backend.models.vit import VisionTransformer
from mlx_peft.config.methods import MethodConfig

Config = TypeVar("Config", bound=MethodConfig)


class Method(ABC, Generic[Config]):
    """A method: one object for all models. What is known of it without a model or a framework, ``kind`` says.

    Args:
        kind: its class in ``mlx_peft.config.methods``.
    """

    def __init__(self, kind: type[Config]):
        self.kind = kind

    @property
    def name(self) -> str:
        """By which a configuration chooses it."""
        return self.kind.model_fields["name"].default

    @abstractmethod
    def apply(self, model: VisionTransformer, config: Config, seed: int) -> None:
        """Puts the method into a frozen model, and unfreezes what it trains, but for heads, which every method trains.

        What is drawn comes from NumPy by name, so that both backends start from the same.

        Raises UserError where it does not fit the model.
        """

    def merge(self, model: VisionTransformer) -> dict[str, nn.Module]:
        """Replaces each of the method's layers by a plain one that computes the same. Returns what was, by path.

        Raises UserError, and changes nothing, where no plain layer computes the same: under a method that says why
        (``kind.unmerged``), and over a quantised base, but for a method that merges into codes (``kind.over_codes``).
        """
        self.kind.must_merge()
        replaced = unwrap(model, self.kind.over_codes)
        if replaced:
            replaced["shared"] = model.shared
            replace(model, "shared", nn.Module())
        return replaced

    def penalty(self, model: VisionTransformer, config: Config) -> mx.array | float:
        """What the loss gains in training; 0 for most."""
        return 0.0

    def importance(self, model: VisionTransformer, config: Config) -> Importance | None:
        """What is averaged over the steps; None for most."""
        return None

    def scores(self, model: VisionTransformer, config: Config, elements: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """How much each triplet matters, by adapter, from the scores of elements that ``importance`` gives."""
        return {}

    def masks(
        self, model: VisionTransformer, config: Config, keep: Mapping[str, Sequence[bool]]
    ) -> dict[str, np.ndarray]:
        """Which elements of which parameters are kept, by name, from the triplets that are, by adapter."""
        return {}
