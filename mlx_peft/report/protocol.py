"""Under which conditions a run was made: what decides a comparison as much as the method does, in a few words each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlx_peft.config.augment import Augment
from mlx_peft.config.schema import Experiment
from mlx_peft.core.errors import UserError
from mlx_peft.training.run import RunFolder, flatten

NORMALISATIONS: Mapping[tuple[tuple[float, ...], tuple[float, ...]], str] = {
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)): "ImageNet",
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)): "0.5",
    ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)): "none",
    ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)): "CLIP",
}
"""What the usual means and deviations of channels are called."""


@dataclass(frozen=True)
class Protocol:
    """What ``config.yaml`` says of a run.

    Attributes:
        facts: in words and numbers, for columns: ``augmentation``, ``epochs``, ``lr``, ``weight_decay``, and ``bits``
            where weights are in codes.
        settings: every key and its value, by dotted name.
    """

    facts: Mapping[str, Any]
    settings: Mapping[str, Any]


NOTHING = Protocol({}, {})
"""Of a run whose configuration is not there or cannot be read."""


def read(folder: RunFolder) -> Protocol:
    """What a run's configuration says; nothing where it cannot be read: then a column is empty, and no run is lost."""
    if not folder.config.exists():
        return NOTHING
    try:
        return of_experiment(folder.read_config())
    except UserError:
        return NOTHING


def of_experiment(experiment: Experiment) -> Protocol:
    """What an experiment says."""
    optimizer = experiment.train.optimizer
    coded = experiment.quantize or experiment.qat
    facts = {
        "augmentation": augmentation(experiment.data.augment),
        "epochs": experiment.train.epochs,
        "lr": optimizer.lr,
        "weight_decay": optimizer.weight_decay,
        **({"bits": coded.bits} if coded else {}),
    }
    return Protocol(facts, flatten(experiment.model_dump(mode="json")))


def described(result: Mapping[str, Any], own: Protocol, parent: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The ``protocol`` of a result: its own configuration's, or that of the run that it was made of, and its bits.

    Args:
        result: checked.
        parent: the result of the run that it was made of, described already.
    """
    facts = {**((parent or {}).get("protocol") or {}), **own.facts}
    known = result.get("preprocessing") or (parent or {}).get("preprocessing")
    facts |= {"normalisation": normalisation(known["mean"], known["std"])} if known else {}
    step = result.get("step") or {}
    if step.get("quantize"):
        facts["bits"] = step["quantize"].get("bits")
    elif step.get("simulate"):
        facts["bits"] = step["simulate"].get("weights")
    return facts


def augmentation(augment: Augment) -> str:
    """``random resized crop, flip, mixup 0.8``; ``none`` where every epoch shows the same pixels."""
    crops = {"none": "", "padded": f"crop padded by {augment.padding}", "random_resized": "random resized crop"}
    jitter, erasing, randaugment = augment.color_jitter, augment.erasing, augment.randaugment
    said = (
        crops[augment.crop],
        "flip" if augment.flip else "",
        f"RandAugment {randaugment.ops} x {randaugment.magnitude}" if randaugment else "",
        "colour jitter" if jitter else "",
        f"erasing {erasing.probability:g}" if erasing else "",
        f"mixup {augment.mixup:g}" if augment.mixup else "",
        f"cutmix {augment.cutmix:g}" if augment.cutmix else "",
        f"repeated {augment.repeats} times" if augment.repeats > 1 else "",
    )
    return ", ".join(filter(None, said)) or "none"


def normalisation(mean: list[float], deviation: list[float]) -> str:
    """``ImageNet`` and the like, or else the numbers."""
    numbers = " ".join(f"{value:g}" for value in mean), " ".join(f"{value:g}" for value in deviation)
    return NORMALISATIONS.get((tuple(mean), tuple(deviation)), f"mean {numbers[0]}, deviation {numbers[1]}")
