"""Proof that both backends compute the same: the same weights and images through each, compared figure by figure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain, product
from typing import NamedTuple, get_args

import numpy as np

from convert.base import Base, load_base
from mlx_peft.config.methods import Linear, Method
from mlx_peft.config.quantization import from_options, is_scale
from mlx_peft.config.schema import Experiment
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError, suggest
from mlx_peft.protocols.backend import Backend
from mlx_peft.protocols.loading import load_backend
from mlx_peft.protocols.model import Model
from mlx_peft.protocols.trainer import Trainer
from mlx_peft.training.allocation import allocator

BATCH, CLASSES, STEPS = 2, 10, 20

MODELS: dict[str, dict[str, object]] = {
    "vit_tiny_patch16_224": {},
    "deit_small_patch16_224": {},
    "deit_tiny_distilled_patch16_224": {},
    "vit_base_patch16_224": {"args": {"depth": 2}},
    "vit_small_patch14_dinov2": {"image_size": 112},
    "vit_small_patch14_reg4_dinov2": {"image_size": 112},
    "vit_base_patch16_siglip_224": {"args": {"depth": 2}},
}
"""The models that are compared, some cut in depth or image size so that a run stays short."""


GROUP_SIZE = 64
"""Quantised cells have groups of so many inputs: the largest number that divides the width of every model."""


class Row(NamedTuple):
    """A method in the matrix: its options, and a learning rate under which its loss does not explode.

    Where it does (full fine-tuning at 1e-3), Adam magnifies rounding, and losses drift apart though gradients agree.
    """

    options: dict[str, object]
    lr: float = 1e-3
    steps: int | None = None
    """Of the trajectory; STEPS where None. A method that deals out ranks needs more to go through all of its phases."""
    qat: dict[str, object] | None = None
    """Codes that are trained through. Then there is no trajectory: a code is a step function of its weight, so that
    weights which differ by a rounding fall now and then on either side of a step, and the losses drift apart."""
    roundings: int = 8
    """That a gradient in half precision may be off by: see ``checks.precision``. More behind a ReLU, where a rounding
    decides on which side of zero a small value falls: the share of such values goes with the round-off, the error with
    its root, so that float16 has more roundings of its own (measured: 37 of them; bfloat16 9)."""


METHODS: dict[str, Row] = {
    "lora": Row({"rank": 8, "targets": ["qkv", "proj", "fc1", "fc2"]}),
    "lora-qv": Row({"rank": 8, "rslora": True, "targets": ["q", "v"]}),
    "lora-dora": Row({"rank": 8, "dora": True, "targets": ["qkv", "fc2"]}),
    "lora-pissa": Row({"rank": 8, "init": "pissa", "lora_plus": 4, "targets": ["v", "proj"]}),
    "lora-blocks": Row({"rank": 4, "targets": "all-linear", "blocks": "last 2", "rank_pattern": {"qkv": 8}}),
    "adalora": Row(
        {"init_rank": 8, "target_rank": 4, "t_init": 10, "t_final": 15, "delta_t": 3, "targets": ["q", "v", "fc1"]},
        steps=60,
    ),
    "qalora": Row({"rank": 8, "targets": ["qkv", "fc2"]}),
    "qalora-avg": Row({"rank": 8, "pool": "avg", "targets": ["q", "v", "fc1"]}),
    "vera": Row({"rank": 64, "targets": ["q", "v", "fc1"]}),
    "fact": Row({"rank": 8}),
    "ia3": Row({}),
    "ssf": Row({}),
    "adaptformer": Row({"dropout": 0}, roundings=48),  # each backend draws its own
    "vpt": Row({}),
    "vpt-deep": Row({"deep": True}),
    "bitfit": Row({}),
    "layernorm": Row({}),
    "linear": Row({}),
    "lora-qat": Row({"rank": 8, "targets": "all-linear"}, qat={"bits": 4}),
    "lora-lsq": Row({"rank": 8, "targets": ["q", "v"]}, qat={"bits": 4, "scales": "learned"}),
    "full-qat": Row({}, lr=3e-5, qat={"bits": 4}),
    "full": Row({}, lr=3e-5),
    "full-blocks": Row({"blocks": "last 2"}, lr=3e-5),
}
"""The rows of the matrix; a name up to the first hyphen is the method's."""

QUANTIZED_MODELS = ("vit_tiny_patch16_224", "vit_small_patch14_dinov2")
QUANTIZED_METHODS = ("lora", "lora-dora", "adalora", "vera", "qalora", "qalora-avg")
"""These rows are also compared over quantised bases, or only over them."""

OVER_CODES = {kind.model_fields["name"].default for kind in get_args(get_args(Method)[0]) if kind.over_codes}
PLAIN_METHODS = tuple(name for name in METHODS if name.partition("-")[0] not in OVER_CODES)

BITS = (8, 4, 3, 2)
"""A weight in those bases has so many bits."""

LOGITS, GRADIENTS, TRAJECTORY = 1e-5, 1e-4, 1e-4
"""The largest relative errors in float32 are a few hundred roundings (1.2e-7 each) in logits; gradients and losses
after real steps pass through twice as many operations, and through Adam's division by small numbers."""


@dataclass(frozen=True)
class Cell:
    """One model under one method; each figure is ||a - b|| / ||b||, b being torch's."""

    model: str
    method: str
    bits: int | None
    logits: float
    loss: float
    gradients: float
    worst: str
    """The parameter whose gradient differs most."""
    trajectory: float | None
    """The losses of the row's optimiser steps, the largest error of one; None where it was not run."""
    masks: int | None
    """Steps after which the backends keep different triplets; None where ranks are not dealt out."""
    merged: float | None
    """The logits of the plain model that merging gives, in both backends, against the unmerged one's in torch; None
    where the method cannot be merged. Over a quantised base, the plain model has the weights that its codes stand for,
    or, where the method keeps them, the codes.
    """

    @property
    def passed(self) -> bool:
        close = self.logits <= LOGITS and (self.merged or 0.0) <= LOGITS and self.loss <= LOGITS
        return close and self.gradients <= GRADIENTS and (self.trajectory or 0.0) <= TRAJECTORY and not self.masks


def relative(a: np.ndarray | float, b: np.ndarray | float) -> float:
    """||a - b|| / ||b||, in float64; infinite where that is not a number, which no comparison would notice."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    error = float(np.linalg.norm(a - b) / max(np.linalg.norm(b), np.finfo(np.float64).tiny))
    return math.inf if math.isnan(error) else error


def experiment(model: str, method: str, bits: int | None = None, seed: int = 0) -> Experiment:
    """The experiment of a cell: random weights, so that nothing is downloaded."""
    options = {"name": method.partition("-")[0], **METHODS[method].options}
    return Experiment.model_validate(
        {
            "seed": seed,
            "model": {"name": model, "weights": "none", **MODELS.get(model, {})},
            "method": options,
            "quantize": bits and {"bits": bits, "group_size": GROUP_SIZE},
            "qat": METHODS[method].qat,
            "data": {"name": "digits", "batch_size": BATCH},
            "train": {"schedule": {"name": "constant"}, "clip_norm": 1.0, "label_smoothing": 0.1},
        }
    )


def batch(size: int, seed: int, count: int = BATCH) -> tuple[np.ndarray, np.ndarray]:
    """Random pixels and targets, so that no data set is needed."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return images, random.integers(0, CLASSES, count, dtype=np.int32)


def perturbed(tensors: Tensors, seed: int, through_codes: bool = False) -> Tensors:
    """Moves every tensor a little, so that no update is zero as it is at the start.

    With ``through_codes`` to multiples of 2^-10: then W + s B A has one rounding, whatever the order of a product's
    sums, both backends round the same weights, and no code falls on either side of a step. Scales of codes stay.
    """
    random = np.random.default_rng(seed)
    moved = {n: t + 0.02 * random.standard_normal(t.shape).astype(np.float32) for n, t in sorted(tensors.items())}
    if not through_codes:
        return moved
    return {n: tensors[n] if is_scale(n) else np.rint(t * 1024) / np.float32(1024) for n, t in moved.items()}


def merged_logits(backend: Backend, model: Model, config: Experiment, base: Base, images: np.ndarray) -> np.ndarray:
    """The logits of a plain model that holds the model's merged tensors."""
    if config.qat is not None:
        merged = replace(base, tensors=model.merged(), quantization=config.qat.format)
    elif config.method.over_codes:
        merged = replace(base, tensors=model.merged())
    else:
        merged = replace(base, tensors=model.merged(dequantize=True), quantization=None)
    return backend.build_model(merged, CLASSES, Linear()).logits(images)


def trajectory(
    trainers: tuple[Trainer, Trainer], config: Experiment, row: Row, size: int, seed: int
) -> tuple[float, int | None]:
    """Both through the row's steps: the largest error of a loss, and after how many steps the masks differ."""
    steps = STEPS if row.steps is None else row.steps
    dealers = [allocator(config.method, steps) for _ in trainers]
    for trainer, dealer in zip(trainers, dealers, strict=True):
        if dealer:
            dealer.start(trainer, {})
    error, differ = 0.0, 0
    for t in range(1, steps + 1):
        images, targets = batch(size, seed + t - 1)
        losses, kept = [], []
        for trainer, dealer in zip(trainers, dealers, strict=True):
            observe = dealer is not None and dealer.observes(t)
            losses.append(float(trainer.train_step(images, targets, row.lr, observe=observe)))
            kept.append(dealer.after(trainer, t) if dealer else None)
        error = max(error, relative(*losses))
        differ += kept[0] != kept[1]
    return error, differ if dealers[0] else None


def compare(
    ours: Backend, reference: Backend, model: str, method: str, bits: int | None = None, seed: int = 0,
    steps: bool = True,
) -> Cell:  # fmt: skip
    """Takes both through logits, gradients, the merge and, with ``steps``, a trajectory."""
    config = experiment(model, method, bits, seed)
    base = load_base(config.model, CLASSES, seed, config.quantize)
    a, b = (backend.build_trainer(config, CLASSES, base) for backend in (ours, reference))
    images, targets = batch(base.architecture.img_size, seed)
    start = perturbed(b.model.adapter(), seed, through_codes=config.qat is not None)
    a.model.load_adapter(start)
    b.model.load_adapter(start)
    expected = b.model.logits(images)
    logits = relative(a.model.logits(images), expected)
    merged = None
    if config.method.merges:
        pairs = ((ours, a.model), (reference, b.model))
        merged = max(relative(merged_logits(*pair, config, base, images), expected) for pair in pairs)
    (loss_a, gradients_a), (loss_b, gradients_b) = (trainer.loss_and_gradients(images, targets) for trainer in (a, b))
    errors = {name: relative(gradients_a[name], gradients_b[name]) for name in gradients_b}
    worst = max(errors, key=lambda name: errors[name])
    drift, masks = None, None
    if steps and config.qat is None:
        drift, masks = trajectory((a, b), config, METHODS[method], base.architecture.img_size, seed)
    return Cell(
        model=model, method=method, bits=bits, logits=logits, loss=relative(loss_a, loss_b), gradients=errors[worst],
        worst=worst, trajectory=drift, masks=masks, merged=merged,
    )  # fmt: skip


def cells(
    models: Iterable[str],
    methods: Iterable[str],
    bits: Iterable[int | None] = (None,),
    seed: int = 0,
    steps: bool = True,
) -> Iterator[Cell]:
    """Compares the backends on every triple. Torch is loaded first: see ``backend.blas``."""
    reference, ours = load_backend("torch"), load_backend("mlx")
    for model, method, width in product(models, methods, bits):
        yield compare(ours, reference, model, method, width, seed, steps)


def run(
    model: str | None = None, method: str | None = None, bits: int | None = None, steps: bool = True
) -> Iterator[Cell]:
    """The matrix, or the part of it that a model's name, a method's and the bits of the base select.

    Over plain bases every model meets every method; over quantised ones, what is not named is what QUANTIZED_MODELS and
    QUANTIZED_METHODS name. Without ``steps`` no trajectory is run, which is most of the time that a cell takes.
    """
    if method is not None and method not in METHODS:
        raise UserError(f"no method {method!r} in the parity matrix{suggest(method, METHODS)}")
    if bits is not None:
        from_options(bits, GROUP_SIZE)
        methods = [method] if method else QUANTIZED_METHODS
        return cells([model] if model else QUANTIZED_MODELS, methods, [bits], steps=steps)
    models = [name for name in QUANTIZED_MODELS if model in (None, name)]
    methods = [name for name in QUANTIZED_METHODS if method in (None, name)]
    float_methods = [name for name in PLAIN_METHODS if method in (None, name)]
    return chain(
        cells([model] if model else MODELS, float_methods, steps=steps), cells(models, methods, BITS, steps=steps)
    )


def summary(results: list[Cell]) -> dict[str, object]:
    """What ``parity --json`` prints."""
    return {
        "cells": [asdict(cell) for cell in results],
        "max_logits": max(cell.logits for cell in results),
        "max_gradients": max(cell.gradients for cell in results),
        "tolerances": {"logits": LOGITS, "gradients": GRADIENTS, "trajectory": TRAJECTORY},
        "passed": all(cell.passed for cell in results),
    }
