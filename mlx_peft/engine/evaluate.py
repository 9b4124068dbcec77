"""How good a learner is on a split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from mlx_peft.config.errors import UserError
from mlx_peft.data import Batch
from mlx_peft.engine.backend import Learner
from mlx_peft.engine.metrics import SHOWN, Evaluation, measure
from mlx_peft.engine.progress import Metrics

Answers = tuple[np.ndarray, np.ndarray]
"""Logits, float64 ``(images, classes)``, and targets, ``(images,)``."""


def evaluate(learner: Learner, batches: Iterable[Batch], num_classes: int) -> Metrics:
    """The metrics of a learner's answers: see ``measured``."""
    return measured(answers(learner, batches), num_classes)


def answers(learner: Learner, batches: Iterable[Batch]) -> Iterator[Answers]:
    """What a learner says of each batch's images. Raises UserError where a logit is not finite.

    Rows that fill a batch up are left out.
    """
    for batch in batches:
        logits = learner.logits(batch.images)[: batch.count].astype(np.float64)
        if not np.isfinite(logits).all():
            raise UserError(
                "the model's logits are not finite: it diverged, or overflows in its precision; "
                "try train.precision: float32 or a lower train.optimizer.lr"
            )
        yield logits, batch.targets[: batch.count]


def measured(answers: Iterable[Answers], num_classes: int) -> Metrics:
    """The metrics of ``examined``; with very many classes without ``auroc``, which then takes as long as a model."""
    return examined(answers, num_classes, auroc=num_classes <= SHOWN).metrics


def examined(answers: Iterable[Answers], num_classes: int, *, auroc: bool = True) -> Evaluation:
    """``top1``, ``loss`` (mean cross entropy, unsmoothed, unweighted), ``count``, past five classes ``top5``, and more.

    See ``metrics.measure`` for the others. Sums are float64; of equal logits the first class wins.
    """
    ranks = {"top1": 1} | ({"top5": 5} if num_classes > 5 else {})
    hits = dict.fromkeys(ranks, 0)
    loss = 0.0
    kept: list[tuple[np.ndarray, ...]] = []
    for logits, targets in answers:
        largest = logits.max(axis=1, keepdims=True)
        normalizers = np.log(np.exp(logits - largest).sum(axis=1)) + largest[:, 0]
        loss += float((normalizers - logits[np.arange(len(targets)), targets]).sum())
        best = np.argsort(-logits, axis=1, kind="stable")
        for name, rank in ranks.items():
            hits[name] += int((best[:, :rank] == targets[:, None]).any(axis=1).sum())
        kept.append((logits.astype(np.float32), normalizers, best[:, 0], targets.astype(np.int64)))
    if not kept:
        raise ValueError("there are no images to evaluate on")
    found = measure(*(np.concatenate(parts) for parts in zip(*kept, strict=True)), auroc=auroc)
    count = int(found.confusion.sum())
    sums: Metrics = {**{name: hit / count for name, hit in hits.items()}, "loss": loss / count, "count": count}
    return replace(found, metrics=sums | found.metrics)
