"""Weights as they were found, before they are fitted to anything."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_peft.config.quantization import Quantization
from mlx_peft.config.tokens import ReducerConfig
from mlx_peft.core.border import Tensors
from mlx_peft.tasks.registry import USUAL
from mlx_peft.tasks.task import Task
from mlx_peft.vit.architecture import Architecture, Preprocessing
from mlx_peft.vit.registry import Resampling


@dataclass(frozen=True)
class Checkpoint:
    """Weights with all that is known about them, as found.

    Attributes:
        name: timm's, with a tag where that is known of the weights: the hub's, or one that the user gave.
        source: where the weights came from, for a person.
        preprocessing: None where it is unknown.
        tensors: under timm's names; None where they are yet to be drawn.
        notes: cautions, for a person.
        quantization: of the tensors; None where they are plain.
        classes: names, in the order of the head's rows; empty where they are unknown.
        layout: whose names and shapes the tensors had.
        described: whether the source says itself what its architecture is, rather than its name or its shapes.
        task: what the head answers.
        imagenet_1k: whether the head's rows are known to be ImageNet-1k's classes in their usual order.
        sha256: their digest where it is not that of the tensors: of what was computed, which a backend rounds as it
            does, it is the digest of what it was computed from.
        tokens: how it has fewer of them where it answers; None: all of them.
    """

    name: str
    source: str
    architecture: Architecture
    preprocessing: Preprocessing | None
    resampling: Resampling
    tensors: Tensors | None = None
    notes: tuple[str, ...] = ()
    quantization: Quantization | None = None
    classes: tuple[str, ...] = ()
    layout: str = "timm"
    described: bool = False
    task: Task = USUAL
    imagenet_1k: bool = False
    sha256: str | None = None
    tokens: ReducerConfig | None = None
