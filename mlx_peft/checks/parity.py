"""Proof that both backends compute the same: the same weights and images through each, compared figure by figure."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from convert.base import Base, load_base
from mlx_peft.checks.doctor.packages import installed
from mlx_peft.checks.matrix import BATCH, CLASSES, Combination
from mlx_peft.config.methods import Linear
from mlx_peft.config.quantization import is_scale
from mlx_peft.config.schema import Experiment
from mlx_peft.core.border import Tensors
from mlx_peft.protocols.backend import Backend
from mlx_peft.protocols.loading import load_backend
from mlx_peft.protocols.model import Model
from mlx_peft.protocols.trainer import Trainer
from mlx_peft.training.allocation import allocator
from mlx_peft.training.initial import codes_and_factors

T = TypeVar("T")

UNCOMPILED = "MLX_DISABLE_COMPILE"
"""The variable by which MLX compiles nothing. It is read once, when MLX is loaded."""

LOGITS, GRADIENTS, TRAJECTORY = 1e-5, 1e-4, 1e-4
"""The largest relative errors in float32 are a few hundred roundings (1.2e-7 each) in logits; gradients and losses
after real steps pass through twice as many operations, and through Adam's division by small numbers."""


@dataclass(frozen=True)
class Cell:
    """One model under one method; each figure is ||a - b|| / ||b||, b being torch's."""

    model: str
    method: str
    bits: int | None
    cut: Mapping[str, Any]
    """What makes the model smaller than the one of its name."""
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


def compile_nothing(unless: object) -> None:
    """Has MLX compile nothing where it computes on Linux's CPU, if it is not loaded yet, and nothing more was asked.

    There a C++ compiler takes half a second for each of its kernels, and every method has some of its own.
    """
    if not unless and installed("mlx-cpu") is not None:
        os.environ.setdefault(UNCOMPILED, "1")


def relative(a: np.ndarray | float, b: np.ndarray | float) -> float:
    """||a - b|| / ||b||, in float64; infinite where that is not a number, which no comparison would notice."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    error = float(np.linalg.norm(a - b) / max(np.linalg.norm(b), np.finfo(np.float64).tiny))
    return math.inf if math.isnan(error) else error


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
    noise = {n: 0.02 * random.standard_normal(t.shape).astype(np.float32) for n, t in sorted(tensors.items())}
    moved = {n: tensors[n] if tensors[n].dtype == np.uint32 else tensors[n] + change for n, change in noise.items()}
    if not through_codes:
        return moved
    return {n: tensors[n] if is_scale(n) else np.rint(t * 1024) / np.float32(1024) for n, t in moved.items()}


def merged_logits(backend: Backend, model: Model, config: Experiment, base: Base, images: np.ndarray) -> np.ndarray:
    """The logits of a plain model that holds the model's merged tensors, and leaves the tokens that it leaves."""
    if config.qat is not None:
        merged = replace(base, tensors=model.merged(), quantization=config.qat.format)
    elif config.method.over_codes:
        merged = replace(base, tensors=model.merged())
    else:
        merged = replace(base, tensors=model.merged(dequantize=True), quantization=None)
    return backend.build_model(merged, CLASSES, Linear(), tokens=config.tokens).logits(images)


def both(ours: Callable[[], T], reference: Callable[[], T]) -> tuple[T, T]:
    """What the two give, computed at once: on a CPU MLX waits for the compiler of its kernels most of the time."""
    with ThreadPoolExecutor(1) as thread:
        computed = thread.submit(reference)
        return ours(), computed.result()


def losses(
    trainer: Trainer, compared: Combination, config: Experiment, size: int, seed: int
) -> tuple[list[float], list[object]]:
    """Of the row's steps: the loss of each, and which triplets are kept after it, where ranks are dealt out."""
    dealer = allocator(config.method, compared.steps)
    if dealer:
        dealer.start(trainer, {})
    found: list[float] = []
    kept: list[object] = []
    for t in range(1, compared.steps + 1):
        images, targets = batch(size, seed + t - 1)
        observe = dealer is not None and dealer.observes(t)
        found.append(float(trainer.train_step(images, targets, compared.row.lr, observe=observe)))
        kept.append(dealer.after(trainer, t) if dealer else None)
    return found, kept


def trajectory(
    trainers: tuple[Trainer, Trainer], compared: Combination, config: Experiment, size: int, seed: int
) -> tuple[float, int | None]:
    """Both through the row's steps: the largest error of a loss, and after how many steps the masks differ."""
    a, b = (partial(losses, trainer, compared, config, size, seed) for trainer in trainers)
    (found, kept), (expected, masks) = both(a, b)
    differ = sum(one != other for one, other in zip(kept, masks, strict=True))
    return max(map(relative, found, expected)), differ if allocator(config.method, compared.steps) else None


def compare(ours: Backend, reference: Backend, compared: Combination, seed: int = 0, steps: bool = True) -> Cell:
    """Takes both through logits, gradients, the merge and, with ``steps``, a trajectory."""
    config = compared.experiment(seed)
    base = load_base(config.model, CLASSES, seed, config.quantize)
    a, b = (backend.build_trainer(config, CLASSES, base) for backend in (ours, reference))
    images, targets = batch(base.architecture.img_size, seed)
    start = b.model.adapter() | (codes_and_factors(config.method, base) if config.method.own_codes else {})
    start = perturbed(start, seed, through_codes=config.qat is not None)
    a.model.load_adapter(start)
    b.model.load_adapter(start)
    found, expected = both(*(partial(trainer.model.logits, images) for trainer in (a, b)))
    logits = relative(found, expected)
    merged = None
    if config.method.merges:
        pairs = ((ours, a.model), (reference, b.model))
        plain = both(*(partial(merged_logits, *pair, config, base, images) for pair in pairs))
        merged = max(relative(one, expected) for one in plain)
    (loss_a, gradients_a), (loss_b, gradients_b) = both(
        *(partial(trainer.loss_and_gradients, images, targets) for trainer in (a, b))
    )
    errors = {name: relative(gradients_a[name], gradients_b[name]) for name in gradients_b}
    worst = max(errors, key=lambda name: errors[name])
    drift, masks = None, None
    if steps and compared.steps:
        drift, masks = trajectory((a, b), compared, config, base.architecture.img_size, seed)
    return Cell(
        model=compared.model, method=compared.method, bits=compared.bits, cut=compared.cut, logits=logits,
        loss=relative(loss_a, loss_b), gradients=errors[worst], worst=worst, trajectory=drift, masks=masks,
        merged=merged,
    )  # fmt: skip


def cells(chosen: Iterable[Combination], seed: int = 0, steps: bool = True) -> Iterator[Cell]:
    """Compares the backends on each. Torch is loaded first: see ``backend.blas``.

    Without ``steps`` no trajectory is run, which is most of the time that a cell takes.
    """
    reference, ours = load_backend("torch"), load_backend("mlx")
    for compared in chosen:
        yield compare(ours, reference, compared, seed, steps)


def summary(results: list[Cell]) -> dict[str, object]:
    """What ``parity --json`` prints."""
    return {
        "cells": [asdict(cell) for cell in results],
        "max_logits": max(cell.logits for cell in results),
        "max_gradients": max(cell.gradients for cell in results),
        "tolerances": {"logits": LOGITS, "gradients": GRADIENTS, "trajectory": TRAJECTORY},
        "passed": all(cell.passed for cell in results),
    }
