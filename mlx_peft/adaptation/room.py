"""Whether there is room for what is to be computed: asked before any of it is made."""

from __future__ import annotations

from mlx_peft.adaptation import footprint
from mlx_peft.adaptation.estimate.smaller import smaller
from mlx_peft.config.quantization import Quantization
from mlx_peft.config.schema import Experiment, Precision
from mlx_peft.config.tokens import ReducerConfig
from mlx_peft.core import memory
from mlx_peft.core.border import Device
from mlx_peft.vit.architecture import Architecture


def check_training(
    experiment: Experiment,
    architecture: Architecture,
    quantization: Quantization | None,
    *,
    num_classes: int,
    images: int,
    device: Device,
    processes: int = 1,
) -> None:
    """Raises UserError where a step of an experiment needs more memory than there is, with what would need less.

    ``quantization`` is the base's; ``images`` are those of an epoch: a batch has no more, of which each of so many
    ``processes`` has its share.
    """

    def needs(experiment: Experiment) -> footprint.Parts:
        return footprint.training(
            experiment,
            architecture,
            num_classes,
            batch=-(-min(experiment.data.batch_size, images) // processes),
            forms_attention=device.forms_attention,
            quantization=quantization or experiment.quantize,
        )

    there = memory.available() + (device.memory or 0)
    parts = needs(experiment)
    if sum(parts.values()) <= there:
        return
    change = smaller(experiment, there, lambda changed: sum(needs(changed).values()), processes)
    less = "a smaller model, image_size or batch would need less"
    if change is not None:
        less = f"by the same count {' '.join(change.overrides)} would fit"
    memory.require(
        parts,
        f"training {experiment.method.name} on {experiment.model.name} ({architecture.dimensions}) in batches of "
        f"{experiment.data.batch_size}",
        device.memory,
        less,
    )


def check_answering(
    name: str,
    architecture: Architecture,
    quantization: Quantization | None,
    *,
    num_classes: int,
    images: int,
    precision: Precision,
    device: Device,
) -> None:
    """Raises UserError where a batch of so many images cannot be answered in the memory that there is."""
    how = footprint.Answering(images, precision, device.forms_attention)
    parts = footprint.answering(architecture, num_classes, how, quantization)
    what = f"{name} ({architecture.dimensions}) asked of {images} image{'s' * (images > 1)} at once"
    memory.require(parts, what, device.memory, "a smaller data.batch_size would need less" if images > 1 else "")


def check_explaining(
    name: str,
    architecture: Architecture,
    quantization: Quantization | None,
    *,
    num_classes: int,
    device: Device,
    reducer: ReducerConfig | None = None,
) -> None:
    """Raises UserError where what is kept of one image's attention is more than the memory that there is."""
    parts = footprint.explaining(architecture, num_classes, quantization, reducer)
    memory.require(parts, f"{name} ({architecture.dimensions}) looked at while it answers", device.memory)
