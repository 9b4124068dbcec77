"""What the answers on images that may have several classes, or none, are worth: scikit-learn's metrics, class by class.

AUROC and accuracy are those of MedMNIST's own evaluator (Yang et al. 2023): means over the classes, decided at 0.5.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from mlx_peft.engine.metrics import Answers, Evaluation

FIGURES = ("accuracy", "precision", "recall", "f1", "auroc", "map")
"""What is known of each class; ``map`` is the average precision, whose mean is the mAP."""


def examined(answers: Iterable[Answers]) -> Evaluation:
    """``loss``, the mean binary cross entropy over images and classes, ``count`` and what ``measure`` gives.

    Targets are ``(images, classes, 2)``, absent and present, as they are evaluated: 0 or 1.
    """
    logits, targets = (np.concatenate(parts) for parts in zip(*answers, strict=True))
    present = targets[..., 1] > 0
    found = measure(logits, present)
    loss = float((np.logaddexp(0, logits) - logits * present).mean())
    return replace(found, metrics={"loss": loss, "count": len(logits)} | found.metrics)


def measure(logits: np.ndarray, present: np.ndarray) -> Evaluation:
    """FIGURES of each class and their means.

    A class is taken to be there where its probability is above one half. The mean of the accuracies is over all
    classes, the others over those that some images of the split have and some lack: of the rest nothing but the
    accuracy is defined. A class that is never found has precision and F1 0. A confusion matrix there is none.

    Args:
        logits: ``(n, classes)``; present: bool ``(n, classes)``.
    """
    from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score

    found = logits > 0
    per_class = {name: np.full(logits.shape[1], np.nan) for name in FIGURES}
    per_class["accuracy"] = (found == present).mean(axis=0)
    told = np.flatnonzero(present.any(axis=0) & ~present.all(axis=0))
    for label in told:
        here = present[:, label]
        scores = precision_recall_fscore_support(here, found[:, label], average="binary", zero_division=0)
        for name, value in zip(("precision", "recall", "f1"), scores, strict=False):
            per_class[name][label] = value
        per_class["auroc"][label] = roc_auc_score(here, logits[:, label])
        per_class["map"][label] = average_precision_score(here, logits[:, label])
    metrics = {"accuracy": float(per_class["accuracy"].mean())}
    if len(told):
        metrics |= {name: float(per_class[name][told].mean()) for name in FIGURES[1:]}
    return Evaluation(metrics, None, {"support": present.sum(axis=0), **per_class}, {})
