"""How good a learner is on a split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from mlx_peft.config.errors import UserError
from mlx_peft.data import Batch
from mlx_peft.engine.backend import Learner
from mlx_peft.engine.progress import Metrics

Answers = tuple[np.ndarray, np.ndarray]
"""Logits, float64 ``(images, classes)``, and targets, ``(images,)``."""


def evaluate(learner: Learner, batches: Iterable[Batch], num_classes: int) -> Metrics:
    """``top1``, ``loss`` (mean cross entropy, without label smoothing), ``count`` and, past five classes, ``top5``.

    Rows that fill a batch up are left out. Sums are float64; of equal logits the first class wins. Raises UserError
    where a logit is not finite, since no metric of it would mean anything.
    """
    return measured(answers(learner, batches), num_classes)


def answers(learner: Learner, batches: Iterable[Batch]) -> Iterator[Answers]:
    """What a learner says of each batch's images. Raises UserError where a logit is not finite."""
    for batch in batches:
        logits = learner.logits(batch.images)[: batch.count].astype(np.float64)
        if not np.isfinite(logits).all():
            raise UserError(
                "the model's logits are not finite: it diverged, or overflows in its precision; "
                "try train.precision: float32 or a lower train.optimizer.lr"
            )
        yield logits, batch.targets[: batch.count]


def measured(answers: Iterable[Answers], num_classes: int) -> Metrics:
    """The metrics of answers: see ``evaluate``."""
    ranks = {"top1": 1} | ({"top5": 5} if num_classes > 5 else {})
    hits = dict.fromkeys(ranks, 0)
    loss = 0.0
    count = 0
    for logits, targets in answers:
        shifted = logits - logits.max(axis=1, keepdims=True)
        loss += float((np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(targets)), targets]).sum())
        best = np.argsort(-logits, axis=1, kind="stable")
        for name, rank in ranks.items():
            hits[name] += int((best[:, :rank] == targets[:, None]).any(axis=1).sum())
        count += len(targets)
    if not count:
        raise ValueError("there are no images to evaluate on")
    return {**{name: hit / count for name, hit in hits.items()}, "loss": loss / count, "count": count}
