"""What a backend offers: the module that is loaded by its name."""

from __future__ import annotations

from typing import Protocol

from convert.base import Base
from mlx_peft.config.methods import MethodConfig
from mlx_peft.config.quantization import QAT
from mlx_peft.config.schema import Experiment, Precision
from mlx_peft.config.tokens import ReducerConfig
from mlx_peft.core.border import Device
from mlx_peft.core.world import World
from mlx_peft.protocols.measured import Measured
from mlx_peft.protocols.model import Model
from mlx_peft.protocols.trainer import Trainer


class Backend(Measured, Protocol):
    """The entry module of a backend."""

    def build_model(
        self,
        base: Base,
        num_classes: int,
        method: MethodConfig,
        *,
        seed: int = 0,
        qat: QAT | None = None,
        tokens: ReducerConfig | None = None,
        precision: Precision = "float32",
    ) -> Model:
        """A base with a method in it, ready for images and for an adapter.

        Args:
            base: the weights, and how images are prepared for them.
            num_classes: width of the head.
            method: what is put into the network, and with the head is what can be trained.
            seed: of what the method draws.
            qat: the codes that the blocks' linear layers are trained through; None: none.
            tokens: how it has fewer of them; None: all of them.
            precision: of what is computed, and of the frozen parameters.

        Raises:
            UserError: where the method or the reducer does not fit the model.
        """
        ...

    def build_trainer(self, experiment: Experiment, num_classes: int, base: Base) -> Trainer:
        """The model of an experiment and its optimiser, ready for the first step."""
        ...

    def use(self, name: str) -> None:
        """Has what is built from here on compute on the device of a name, as ``config.devices`` has them; for the whole
        process.

        Raises UserError where there is none here.
        """
        ...

    def world(self) -> World:
        """The processes of which this one is one: those that a launcher has started, or this one alone."""
        ...

    def computing(self) -> Device:
        """What it computes on."""
        ...
