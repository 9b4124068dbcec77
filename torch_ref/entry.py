"""What is loaded by this backend's name: see ``mlx_peft.protocols.backend.Backend``."""

from __future__ import annotations

from convert.base import Base
from mlx_peft.config.methods import MethodConfig
from mlx_peft.config.quantization import QAT
from mlx_peft.config.schema import Experiment, Precision
from mlx_peft.config.tokens import ReducerConfig
from torch_ref.device import computing, peak_memory, synchronize, use, version
from torch_ref.measured import multiply, resizing, saved_bytes, step_bytes
from torch_ref.model import Model
from torch_ref.trainer import Trainer
from torch_ref.world import world

__all__ = [
    "build_model",
    "build_trainer",
    "computing",
    "multiply",
    "peak_memory",
    "resizing",
    "saved_bytes",
    "step_bytes",
    "synchronize",
    "use",
    "version",
    "world",
]


def build_model(
    base: Base,
    num_classes: int,
    method: MethodConfig,
    *,
    seed: int = 0,
    qat: QAT | None = None,
    tokens: ReducerConfig | None = None,
    precision: Precision = "float32",
) -> Model:
    """A base with a method in it, ready for images and for an adapter."""
    return Model(base, num_classes, method, seed=seed, qat=qat, tokens=tokens, precision=precision)


def build_trainer(experiment: Experiment, num_classes: int, base: Base) -> Trainer:
    """The model of an experiment and its optimiser, ready for the first step."""
    use(experiment.device)
    return Trainer(experiment, num_classes, base)
