"""How good a learner is on a split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain

import numpy as np

from mlx_peft.data import Batch
from mlx_peft.tasks import multilabel
from mlx_peft.tasks.logits import finite
from mlx_peft.tasks.metrics import SHOWN, Answers, Evaluation, Metrics, measure
from mlx_peft.training.backend import Learner


def evaluate(learner: Learner, batches: Iterable[Batch], num_classes: int) -> Metrics:
    """The metrics of a learner's answers: see ``measured``."""
    return measured(answers(learner, batches), num_classes)


def answers(learner: Learner, batches: Iterable[Batch]) -> Iterator[Answers]:
    """What a learner says of each batch's images. Raises UserError where a logit is not finite.

    Rows that fill a batch up are left out.
    """
    for batch in batches:
        yield finite(learner.logits(batch.images)[: batch.count]), batch.targets[: batch.count]


def measured(answers: Iterable[Answers], num_classes: int) -> Metrics:
    """The metrics of ``examined``; with very many classes without ``auroc``, which then takes as long as a model."""
    return examined(answers, num_classes, auroc=num_classes <= SHOWN).metrics


def examined(answers: Iterable[Answers], num_classes: int, *, auroc: bool = True) -> Evaluation:
    """``top1``, ``loss`` (mean cross entropy, unsmoothed, unweighted), ``count``, past five classes ``top5``, and more.

    See ``metrics.measure`` for the others. Sums are float64; of equal logits the first class wins. Where an image may
    have several classes, there are those of ``multilabel.examined`` in their place.
    """
    every = iter(answers)
    first = next(every, None)
    if first is None:
        raise ValueError("there are no images to evaluate on")
    every = chain([first], every)
    return multilabel.examined(every) if first[1].ndim == 3 else _of_one_class(every, num_classes, auroc)


def _of_one_class(answers: Iterable[Answers], num_classes: int, auroc: bool) -> Evaluation:
    """Batch after batch: of an image a few numbers are kept, and its logits only where the AUROC is wanted."""
    ranks = {"top1": 1} | ({"top5": 5} if num_classes > 5 else {})
    hits = dict.fromkeys(ranks, 0)
    loss = 0.0
    scores: list[np.ndarray] = []
    kept: list[tuple[np.ndarray, ...]] = []
    for logits, targets in answers:
        rows = np.arange(len(targets))
        largest = logits.max(axis=1, keepdims=True)
        normalizers = np.log(np.exp(logits - largest).sum(axis=1)) + largest[:, 0]
        loss += float((normalizers - logits[rows, targets]).sum())
        best = np.argsort(-logits, axis=1, kind="stable")
        for name, rank in ranks.items():
            hits[name] += int((best[:, :rank] == targets[:, None]).any(axis=1).sum())
        confidence = np.exp(logits[rows, best[:, 0]].astype(np.float32) - normalizers)
        kept.append((normalizers, confidence, best[:, 0].copy(), targets.astype(np.int64)))
        if auroc:
            scores.append(logits.astype(np.float32))
    normalizers, confidence, predicted, targets = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    found = measure(normalizers, confidence, predicted, targets, num_classes, scores if auroc else None)
    count = len(targets)
    sums: Metrics = {**{name: hit / count for name, hit in hits.items()}, "loss": loss / count, "count": count}
    return replace(found, metrics=sums | found.metrics)
