"""How good a learner is on a split."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from mlx_peft.config.errors import UserError
from mlx_peft.data import Batch
from mlx_peft.engine.backend import Learner
from mlx_peft.engine.metrics import SHOWN, Evaluation, measure
from mlx_peft.engine.progress import Metrics


def evaluate(learner: Learner, batches: Iterable[Batch], num_classes: int) -> Metrics:
    """The metrics of ``evaluation``; with very many classes without ``auroc``, which then takes as long as a model."""
    return evaluation(learner, batches, num_classes, auroc=num_classes <= SHOWN).metrics


def evaluation(learner: Learner, batches: Iterable[Batch], num_classes: int, *, auroc: bool = True) -> Evaluation:
    """``top1``, ``loss`` (mean cross entropy, unsmoothed, unweighted), ``count``, past five classes ``top5``, and more.

    See ``metrics.measure`` for the others. Rows that fill a batch up are left out. Sums are float64; of equal logits
    the first class wins. Raises UserError where a logit is not finite, since no metric of it would mean anything.
    """
    ranks = {"top1": 1} | ({"top5": 5} if num_classes > 5 else {})
    hits = dict.fromkeys(ranks, 0)
    loss = 0.0
    kept: list[tuple[np.ndarray, ...]] = []
    for batch in batches:
        exact = learner.logits(batch.images)[: batch.count]
        logits = exact.astype(np.float64)
        targets = batch.targets[: batch.count]
        if not np.isfinite(logits).all():
            raise UserError(
                "the model's logits are not finite: it diverged, or overflows in its precision; "
                "try train.precision: float32 or a lower train.optimizer.lr"
            )
        rows = np.arange(batch.count)
        largest = logits.max(axis=1, keepdims=True)
        normalizers = np.log(np.exp(logits - largest).sum(axis=1)) + largest[:, 0]
        loss += float((normalizers - logits[rows, targets]).sum())
        best = np.argsort(-logits, axis=1, kind="stable")
        for name, rank in ranks.items():
            hits[name] += int((best[:, :rank] == targets[:, None]).any(axis=1).sum())
        kept.append((exact, normalizers, best[:, 0], targets.astype(np.int64)))
    if not kept:
        raise ValueError("there are no images to evaluate on")
    found = measure(*(np.concatenate(parts) for parts in zip(*kept, strict=True)), auroc=auroc)
    count = int(found.confusion.sum())
    sums: Metrics = {**{name: hit / count for name, hit in hits.items()}, "loss": loss / count, "count": count}
    return replace(found, metrics=sums | found.metrics)
