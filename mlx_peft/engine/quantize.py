"""A trained model in few bits: merged, quantised, written, and what that changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from convert.base import Base
from convert.codes import affine
from convert.timm import write_model
from mlx_peft.config.methods import Linear
from mlx_peft.config.quantization import Quantization
from mlx_peft.config.schema import Experiment
from mlx_peft.engine.backend import Learner, load_backend

PROBES = 8
"""Images on which a change of the logits is measured: uniform noise, as the model's own images need not be at hand."""


@dataclass(frozen=True)
class Written:
    """What became of a model that was written.

    Attributes:
        quantization: of the model; None where it is a plain one.
        sqnr: of each layer that was quantised, by path, in dB: the weight's power over its error's.
        logits: ||a - b|| / ||b|| on noise, b being the logits before quantising; None where nothing was quantised.
    """

    quantization: Quantization | None
    sqnr: dict[str, float]
    logits: float | None


def write_quantized(
    out: Path,
    learner: Learner,
    experiment: Experiment,
    base: Base,
    classes: Sequence[str],
    num_classes: int,
    quantization: Quantization,
) -> Written:
    """Merges a learner into plain weights, quantises these as its backend does, and writes them to the folder ``out``.

    Args:
        experiment, base: the learner's.
        classes: names; none where they are unknown.
        num_classes: width of the head.
    """
    exact = learner.merged(dequantize=True)
    plain = experiment.model_copy(update={"method": Linear(), "quantize": quantization, "qat": None})
    fewer = load_backend(plain.backend).build(
        plain, num_classes, replace(base, tensors=exact, quantization=quantization)
    )
    tensors = fewer.merged()
    write_model(out, base=base, tensors=tensors, classes=classes, quantization=quantization)
    codes = affine.plain(tensors, base.architecture, quantization)
    names = [f"{site.path}.weight" for site in quantization.sites(base.architecture)]
    size = base.architecture.img_size
    images = np.random.default_rng(0).integers(0, 256, (PROBES, size, size, 3), dtype=np.uint8)
    before, after = (one.logits(images).astype(np.float64) for one in (learner, fewer))
    return Written(
        quantization,
        {name.removesuffix(".weight"): affine.sqnr(exact[name], codes[name]) for name in names},
        float(np.linalg.norm(after - before) / np.linalg.norm(before)),
    )
