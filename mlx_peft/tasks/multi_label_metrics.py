"""What the answers on images that may have several classes, or none, are worth: scikit-learn's metrics, class by class.

AUROC and accuracy are those of MedMNIST's own evaluator (Yang et al. 2023): means over the classes, decided at 0.5.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from mlx_peft.tasks.metrics import Answers, Columns, Evaluation

FIGURES = ("accuracy", "precision", "recall", "f1", "auroc", "map")
"""These figures are measured of each class; ``map`` is the average precision, whose mean is the mAP."""


def examined(answers: Iterable[Answers]) -> Evaluation:
    """``loss``, the mean binary cross entropy over images and classes, ``count`` and what ``measure`` gives.

    Targets are ``(images, classes, 2)``, absent and present, as they are evaluated: 0 or 1. Batch after batch: of an
    image and class five bytes are kept.
    """
    scores, present = Columns(np.float32), Columns(np.bool_)
    loss, classes = 0.0, 0
    for logits, targets in answers:
        here, classes = targets[..., 1] > 0, logits.shape[1]
        loss += float((np.logaddexp(0, logits) - logits * here).sum())
        scores.add(logits)
        present.add(here)
    found = measure(scores, present, classes)
    sums = {"loss": loss / (len(scores) * classes), "count": len(scores)}
    return replace(found, metrics=sums | found.metrics)


def measure(scores: Columns, presence: Columns, classes: int) -> Evaluation:
    """FIGURES of each class and their means.

    A class is taken to be there where its probability is above one half. The mean of the accuracies is over all
    classes, the others over those that some images of the split have and some lack: of the rest nothing but the
    accuracy is defined. A class that is never found has precision and F1 0. A confusion matrix there is none.

    Args:
        scores: the logits of all images, float32. presence: which classes they have, bool.
    """
    from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score

    support = np.zeros(classes, np.int64)
    per_class = {name: np.full(classes, np.nan) for name in FIGURES}
    defined = []
    for label in range(classes):
        logits, here = scores.column(label), presence.column(label)
        support[label] = here.sum()
        per_class["accuracy"][label] = ((logits > 0) == here).mean()
        if not 0 < support[label] < len(here):
            continue
        defined.append(label)
        figures = precision_recall_fscore_support(here, logits > 0, average="binary", zero_division=0)
        for name, value in zip(("precision", "recall", "f1"), figures, strict=False):
            per_class[name][label] = value
        per_class["auroc"][label] = roc_auc_score(here, logits)
        per_class["map"][label] = average_precision_score(here, logits)
    metrics = {"accuracy": float(per_class["accuracy"].mean())}
    if defined:
        metrics |= {name: float(per_class[name][defined].mean()) for name in FIGURES[1:]}
    return Evaluation(metrics, None, {"support": support, **per_class}, {})
