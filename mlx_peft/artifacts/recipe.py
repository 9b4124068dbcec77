"""What a model that answers is built from; for that it needs no experiment."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from convert.base import Base
from mlx_peft.adaptation.room import check_answering
from mlx_peft.config.methods import Linear, Method
from mlx_peft.config.quantization import QAT, Quantization
from mlx_peft.config.schema import Data, Experiment, Model, Precision
from mlx_peft.config.tokens import ReducerConfig
from mlx_peft.protocols import model as protocols
from mlx_peft.protocols.loading import load_backend


@dataclass(frozen=True)
class Recipe:
    """What a model is built from: a run's configuration as far as it decides that, or what an adapter says of itself.

    Attributes:
        model, method, quantize, qat, seed, backend, precision, tokens: as in an experiment.
        batch_size: images that are answered at once.
    """

    model: Model
    method: Method
    quantize: Quantization | None = None
    qat: QAT | None = None
    seed: int = 0
    backend: Literal["mlx", "torch"] = "mlx"
    precision: Precision = "float32"
    batch_size: int = Data.model_fields["batch_size"].default
    tokens: ReducerConfig | None = None

    @classmethod
    def of(cls, experiment: Experiment) -> Recipe:
        """A run's."""
        return cls(
            experiment.model,
            experiment.method,
            experiment.quantize,
            experiment.qat,
            experiment.seed,
            experiment.backend,
            experiment.train.precision,
            experiment.data.batch_size,
            experiment.tokens,
        )

    def check_room(self, base: Base, num_classes: int, images: int) -> None:
        """Raises UserError where so many images at once cannot be answered in the memory that there is."""
        check_answering(
            base.name,
            base.architecture,
            base.quantization,
            num_classes=num_classes,
            images=images,
            precision=self.precision,
            device=load_backend(self.backend).computing(),
        )

    def build(self, base: Base, num_classes: int) -> protocols.Model:
        """The model, over a base."""
        backend = load_backend(self.backend)
        return backend.build_model(
            base, num_classes, self.method, seed=self.seed, qat=self.qat, tokens=self.tokens, precision=self.precision
        )

    def build_base(self, base: Base, num_classes: int) -> protocols.Model:
        """The base alone, whatever it is now, without a method."""
        return replace(self, method=Linear(), qat=None).build(base, num_classes)
