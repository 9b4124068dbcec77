"""Metrics against scikit-learn's own functions, and where a class is absent."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from mlx_peft.data import Batch
from mlx_peft.tasks.metrics import SHOWN, Evaluation
from mlx_peft.tasks.single_label import SINGLE_LABEL
from mlx_peft.tasks.single_label_metrics import BINS, binned
from mlx_peft.training.evaluate import answers, evaluate, examined

EXACT = 1e-12  # float64; only the order of sums differs


def run(logits: np.ndarray, targets: np.ndarray) -> Evaluation:
    rows = np.arange(len(targets), dtype=np.int32).view(np.uint8).reshape(-1, 1, 1, 4)
    model: Any = SimpleNamespace(logits=lambda images: logits[images.reshape(-1, 4).view(np.int32)[:, 0]])
    batches = [
        Batch(rows[n : n + 7], targets[n : n + 7], np.arange(len(rows[n : n + 7]))) for n in range(0, len(rows), 7)
    ]
    return examined(answers(model, batches), SINGLE_LABEL, logits.shape[1])


def case(classes: int, rows: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits that are right more often than not, targets, probabilities."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, rows)
    logits = rng.normal(0, 1, (rows, classes)) + 1.5 * np.eye(classes)[targets]
    logits = logits.astype(np.float32)
    odds = np.exp(logits.astype(np.float64))
    return logits, targets, odds / odds.sum(1, keepdims=True)


@pytest.mark.parametrize("classes", [3, 7])
def test_metrics_are_scikit_learns(classes: int) -> None:
    logits, targets, odds = case(classes)
    found, guess = run(logits, targets), logits.argmax(1)
    expected = {
        "balanced_accuracy": balanced_accuracy_score(targets, guess),
        "precision": precision_score(targets, guess, average="macro"),
        "recall": recall_score(targets, guess, average="macro"),
        "f1": f1_score(targets, guess, average="macro"),
        "auroc": roc_auc_score(targets, odds, multi_class="ovr"),
    }
    assert {name: found.metrics[name] for name in expected} == pytest.approx(expected, rel=EXACT)
    assert np.array_equal(found.confusion, confusion_matrix(targets, guess))
    np.testing.assert_allclose(found.per_class["recall"], recall_score(targets, guess, average=None), rtol=EXACT)
    assert np.array_equal(found.per_class["support"], np.bincount(targets))


def test_of_two_classes_auroc_is_the_binary_one_even_of_a_very_sure_model() -> None:
    logits, targets, _ = case(2)
    logits *= 12  # in float32 a probability above 1 - 3e-8 is 1
    sure = (logits[:, 1] - logits[:, 0]).astype(np.float64)
    assert run(logits, targets).metrics["auroc"] == pytest.approx(roc_auc_score(targets, sure), rel=EXACT)


def test_the_calibration_error_is_the_mean_gap_of_scikit_learns_curve() -> None:
    logits, targets, odds = case(4, rows=500)
    right, confidence = (logits.argmax(1) == targets).astype(int), odds.max(1)
    share, mean = calibration_curve(right, confidence, n_bins=BINS)
    counts = np.histogram(confidence, np.linspace(0, 1, BINS + 1))[0]
    expected = (np.abs(share - mean) * counts[counts > 0]).sum() / 500
    assert run(logits, targets).metrics["ece"] == pytest.approx(expected, rel=1e-9)


def test_a_probability_on_the_edge_belongs_to_the_lower_bin_and_empty_bins_are_undefined() -> None:
    found = binned(np.array([1 / BINS, 1.0, 1e-9]), np.array([True, False, False]))
    assert (found["count"][0], found["count"][-1], found["count"].sum()) == (2, 1, 3)
    assert found["accuracy"][0] == 0.5
    assert np.isnan(found["accuracy"][1])


def test_a_class_without_images_counts_in_no_average_and_is_undefined_by_itself() -> None:
    logits, targets, odds = case(4)
    keep = targets != 2
    logits, targets, odds = logits[keep], targets[keep], odds[keep]
    found, guess = run(logits, targets), logits.argmax(1)
    assert (guess == 2).any(), "it is predicted all the same"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert found.metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(targets, guess), rel=EXACT)
    present = [0, 1, 3]
    assert found.metrics["f1"] == pytest.approx(f1_score(targets, guess, labels=present, average="macro"), rel=EXACT)
    rest = np.mean([roc_auc_score(targets == label, odds[:, label]) for label in present])
    assert found.metrics["auroc"] == pytest.approx(rest, rel=EXACT)
    details = found.details(("a", "b", "c", "d"))
    assert [details["per_class"][name][2] for name in ("precision", "recall", "f1", "auroc")] == [None] * 4
    assert details["per_class"]["support"][2] == 0


def test_a_class_that_is_never_predicted_has_precision_0_and_no_warning() -> None:
    logits = np.array([[2, 1, 0], [2, 1, 0], [2, 1, 0]], np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = run(logits, np.array([0, 1, 2]))
    assert found.per_class["precision"].tolist() == [1 / 3, 0, 0]
    assert found.metrics["balanced_accuracy"] == pytest.approx(1 / 3)


def test_with_one_class_alone_there_is_no_auroc() -> None:
    found = run(np.zeros((5, 3), np.float32), np.full(5, 1))
    assert "auroc" not in found.metrics
    assert found.metrics["balanced_accuracy"] == 0
    assert found.details(("a", "b", "c"))["per_class"]["auroc"] == [None] * 3


def test_many_classes_have_auroc_when_they_are_examined_and_not_in_every_epoch() -> None:
    logits, targets, _ = case(SHOWN + 1, rows=50)
    model: Any = SimpleNamespace(logits=lambda images: logits)
    batch = Batch(np.zeros((50, 1, 1, 3), np.uint8), targets, np.arange(50))
    assert "auroc" not in evaluate(model, [batch], SINGLE_LABEL, SHOWN + 1)
    found = examined(answers(model, [batch]), SINGLE_LABEL, SHOWN + 1)
    assert "auroc" in found.metrics
    assert found.details(tuple(map(str, range(SHOWN + 1))))["confusion"] is None
