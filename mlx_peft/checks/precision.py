"""What half precision costs: each backend in bfloat16 or float16 against torch in float32, on a batch of real size.

Two backends that compute in half precision differ by its roundings, so each is compared with float32 rather than with
the other. The batch is as large as one of training: what a sum over its rows loses, were it accumulated in half
precision, grows with their number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import product

from convert.base import load_base
from mlx_peft.checks import matrix
from mlx_peft.checks.matrix import CLASSES, METHODS, PLAIN_METHODS, Combination
from mlx_peft.checks.parity import batch, perturbed, relative
from mlx_peft.config.schema import Experiment
from mlx_peft.protocols.loading import load_backend

ROUND_OFF = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
"""The largest relative error of one rounding: 8 and 11 bits of precision."""

ROWS = 12_608
"""The batch has so many tokens, of all its images together: 64 images at 224 pixels."""

NARROW: dict[str, object] = {"embed_dim": 64, "num_heads": 2, "depth": 2}
MODELS: dict[str, dict[str, object]] = {
    "vit_tiny_patch16_224": {"args": NARROW},
    "deit_tiny_distilled_patch16_224": {"args": NARROW},
    "vit_small_patch14_reg4_dinov2": {"image_size": 224, "args": NARROW},
    "vit_base_patch16_siglip_224": {"args": NARROW},
    "vit_base_patch16_siglip_gap_224": {"args": NARROW},
    "vit_small_patch16_224": {"args": {**NARROW, "depth": 12}},
}
"""The models that are compared, narrow, as any other that is asked for: a run stays short, and sums are as long as in
the real ones."""
FIRST = next(iter(MODELS))

LOGITS = 4
"""The largest relative error of logits and loss, in roundings. That of gradients is ``parity.Row.roundings``; see
``allowed``."""

LOSS_SCALE = {"bfloat16": 1.0, "float16": 2.0**12}
"""The loss is scaled by this for the backward pass, as in training: some gradients are below float16's least, 6e-8."""


def allowed(roundings: int, precision: str, depth: int) -> float:
    """The largest relative error: so many roundings a block, one block's as often up as another's is down."""
    return roundings * ROUND_OFF[precision] * math.sqrt(depth)


@dataclass(frozen=True)
class HalfCell:
    """One model under one method in one backend's half precision; each figure is ||a - b|| / ||b||, b in float32."""

    model: str
    method: str
    bits: int | None
    precision: str
    backend: str
    depth: int
    rows: int
    logits: float
    loss: float
    gradients: float
    worst: str
    """The parameter whose gradient is furthest off."""

    @property
    def passed(self) -> bool:
        close = max(self.logits, self.loss) <= allowed(LOGITS, self.precision, self.depth)
        return close and self.gradients <= allowed(METHODS[self.method].roundings, self.precision, self.depth)


def in_precision(config: Experiment, precision: str) -> Experiment:
    """The experiment in a precision."""
    return config.model_copy(update={"train": config.train.model_copy(update={"precision": precision})})


def compare(compared: Combination, precisions: Iterable[str], rows: int = ROWS, seed: int = 0) -> Iterator[HalfCell]:
    """Both backends in each precision, against torch in float32. Torch is loaded first: see ``backend.blas``."""
    backends = {name: load_backend(name) for name in ("torch", "mlx")}
    single = compared.experiment(seed)
    base = load_base(single.model, CLASSES, seed, single.quantize)
    architecture = base.architecture
    tokens = len(architecture.places)
    images, targets = batch(architecture.img_size, seed, math.ceil(rows / tokens))
    exact = backends["torch"].build_trainer(single, CLASSES, base)
    start = perturbed(exact.model.adapter(), seed, through_codes=single.qat is not None)
    exact.model.load_adapter(start)
    expected, (loss, gradients) = exact.model.logits(images), exact.loss_and_gradients(images, targets)
    for precision, (name, backend) in product(precisions, backends.items()):
        trainer = backend.build_trainer(in_precision(single, precision), CLASSES, base)
        trainer.model.load_adapter(start)
        logits = relative(trainer.model.logits(images), expected)
        found_loss, found = trainer.loss_and_gradients(images, targets, LOSS_SCALE[precision])
        errors = {key: relative(found[key], gradients[key]) for key in gradients}
        worst = max(errors, key=lambda key: errors[key])
        yield HalfCell(
            model=compared.model, method=compared.method, bits=compared.bits, precision=precision, backend=name,
            depth=architecture.depth, rows=len(images) * tokens, logits=logits, loss=relative(found_loss, loss),
            gradients=errors[worst], worst=worst,
        )  # fmt: skip


def each_once(model: str | None = None, method: str | None = None, bits: int | None = None) -> list[Combination]:
    """Every method once on FIRST, or what the names select. Raises UserError as ``matrix.check``."""
    matrix.check(method, bits)
    usual = PLAIN_METHODS if bits is None else matrix.QUANTIZED_METHODS
    return combinations([model or FIRST], [method] if method else usual, bits)


def whole(model: str | None = None, method: str | None = None, bits: int | None = None) -> list[Combination]:
    """Every method on one model and every model under full fine-tuning, or what the names select of all.

    Raises UserError as ``matrix.check``.
    """
    if bits is not None and model is None:
        return each_once(model, method, bits)
    matrix.check(method, bits)
    if model or method:
        return combinations([model] if model else MODELS, [method] if method else PLAIN_METHODS, bits)
    others = [name for name in MODELS if name != FIRST]
    return [*combinations([FIRST], PLAIN_METHODS), *combinations(others, ["full"])]


def combinations(models: Iterable[str], methods: Iterable[str], bits: int | None = None) -> list[Combination]:
    """Each model under each method, the models narrow."""
    return [
        Combination(model, method, bits, {**matrix.MODELS.get(model, {}), **MODELS.get(model, {"args": NARROW})})
        for model, method in product(models, methods)
    ]


def cells(chosen: Iterable[Combination], precision: str) -> Iterator[HalfCell]:
    """Two of each combination, one for each backend, in one half precision."""
    for compared in chosen:
        yield from compare(compared, [precision])


def summary(results: list[HalfCell]) -> dict[str, object]:
    """What ``parity --precision ... --json`` prints."""
    return {
        "cells": [asdict(cell) for cell in results],
        "max_logits": max(cell.logits for cell in results),
        "max_gradients": max(cell.gradients for cell in results),
        "tolerances": {"logits": LOGITS, "gradients": {c.method: METHODS[c.method].roundings for c in results}},
        "passed": all(cell.passed for cell in results),
    }
