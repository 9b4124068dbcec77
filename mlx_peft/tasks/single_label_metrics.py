"""What the answers on images of one class each are worth: scikit-learn's metrics, over the classes that the split has
images of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from mlx_peft.tasks.metrics import Answers, Columns, Evaluation, Metrics

BINS = 15
"""Confidence is divided into so many bins of equal width, as in Guo et al. 2017."""
MATRIX = 4096
"""With more classes no confusion matrix is made: one of this size takes 128 MiB."""


def examined(answers: Iterable[Answers], num_classes: int, auroc: bool = True) -> Evaluation:
    """``top1``, ``loss`` (mean cross entropy, unsmoothed, unweighted), ``count``, past five classes ``top5``, and more.

    ``balanced_accuracy``, ``precision``, ``recall``, ``f1``, ``auroc`` and ``ece``: see ``measure``. Sums are float64;
    of equal logits the first class wins. Targets are class numbers. Batch after batch: of an image a few numbers are
    kept, and its logits only where the AUROC is wanted.
    """
    ranks = {"top1": 1} | ({"top5": 5} if num_classes > 5 else {})
    hits = dict.fromkeys(ranks, 0)
    loss = 0.0
    scores = Columns(np.float32)
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
            scores.add(logits)
    normalizers, confidence, predicted, targets = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    found = measure(normalizers, confidence, predicted, targets, num_classes, scores if auroc else None)
    count = len(targets)
    sums: Metrics = {**{name: hit / count for name, hit in hits.items()}, "loss": loss / count, "count": count}
    return replace(found, metrics=sums | found.metrics)


def measure(
    normalizers: np.ndarray,
    confidence: np.ndarray,
    predicted: np.ndarray,
    targets: np.ndarray,
    classes: int,
    scores: Columns | None,
) -> Evaluation:
    """Everything but the metrics that are sums over images (``top1``, ``top5``, ``loss``).

    Macro averages, and so the balanced accuracy, which is the macro recall, are over the classes with an image in the
    split; a class that is never predicted has precision and F1 0. ``auroc`` is the mean over these classes of one
    against the rest, for two classes the usual one; left out where the split has one class only. ``ece`` is the
    expected calibration error of the predicted class's probability (Guo et al. 2017, eq. 3). Of more than MATRIX
    classes there is no confusion matrix.

    Args:
        normalizers: float64 ``(n,)``, log sum exp of each image's logits; confidence: float64 ``(n,)``, the probability
            of the predicted class.
        predicted, targets: int64 ``(n,)``.
        scores: the logits of all images, float32: the AUROC, which is exact, alone needs them. None where it is not
            asked for, nor the confusion matrix.
    """
    from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

    support = np.bincount(targets, minlength=classes)
    present = np.flatnonzero(support)
    confusion = None
    if scores is not None and classes <= MATRIX:
        confusion = np.bincount(targets * classes + predicted, minlength=classes**2).reshape(classes, classes)
    per_class = {name: np.full(classes, np.nan) for name in ("precision", "recall", "f1")}
    found = precision_recall_fscore_support(targets, predicted, labels=present, average=None, zero_division=0)
    for values, some in zip(per_class.values(), found, strict=False):
        values[present] = some
    per_class["support"] = support
    metrics: Metrics = {name: float(per_class[name][present].mean()) for name in ("precision", "recall", "f1")}
    metrics = {"balanced_accuracy": metrics["recall"], **metrics}
    if scores is not None:
        per_class["auroc"] = np.full(classes, np.nan)
        for label in present.tolist() if len(present) > 1 else ():
            # Not rounded to float32, in which a sure model's probabilities are all 1.
            probability = np.exp(scores.column(label) - normalizers)
            per_class["auroc"][label] = roc_auc_score(targets == label, probability)
        if len(present) > 1:
            metrics["auroc"] = float(per_class["auroc"][present].mean())
    reliability = binned(confidence, predicted == targets)
    gaps = np.abs(reliability["accuracy"] - reliability["confidence"]) * reliability["count"]
    metrics["ece"] = float(np.nansum(gaps) / len(targets))
    return Evaluation(metrics, confusion, per_class, reliability)


def binned(confidence: np.ndarray, correct: np.ndarray) -> dict[str, np.ndarray]:
    """Images by confidence: how many in each bin, their mean confidence, and the share that is right."""
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    count = np.bincount(place, minlength=BINS)
    occupied = np.where(count, count, np.nan)
    return {
        "count": count,
        "confidence": np.bincount(place, confidence, BINS) / occupied,
        "accuracy": np.bincount(place, correct, BINS) / occupied,
    }
