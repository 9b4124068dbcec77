"""Metrics over padded batches."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import log_loss, top_k_accuracy_score

from mlx_peft.core.errors import UserError
from mlx_peft.data import Batch
from mlx_peft.engine.evaluate import evaluate
from mlx_peft.engine.progress import Metrics


def run(logits: np.ndarray, targets: np.ndarray, size: int) -> Metrics:
    """Evaluates a learner whose logits are given row by row; the rows that fill the last batch up are nonsense."""
    batches = []
    for first in range(0, len(targets), size):
        some = targets[first : first + size]
        rows = np.full((size, 1, 1, 3), 99, np.uint8)
        rows[: len(some), 0, 0, 0] = np.arange(first, first + len(some))
        padded = np.concatenate([some, np.full(size - len(some), -1)]).astype(np.int32)
        batches.append(Batch(rows, padded, len(some)))
    learner: Any = SimpleNamespace(logits=lambda images: logits[images[:, 0, 0, 0]])
    return evaluate(learner, batches, logits.shape[1])


def random_case(classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(0, 3, (100, classes)).astype(np.float32), rng.integers(0, classes, 50)


def test_metrics_are_those_of_scikit_learn_whatever_the_batch_size() -> None:
    logits, targets = random_case(10)
    odds = np.exp(logits[:50].astype(np.float64))
    odds /= odds.sum(1, keepdims=True)
    for size in (1, 7, 50, 64):
        found = run(logits, targets, size)
        assert found["top1"] == top_k_accuracy_score(targets, odds, k=1, labels=range(10))
        assert found["top5"] == top_k_accuracy_score(targets, odds, k=5, labels=range(10))
        # Both are float64; only the order of the sums differs.
        assert found["loss"] == pytest.approx(log_loss(targets, odds, labels=range(10)), rel=1e-12)
        assert found["count"] == 50


def test_up_to_five_classes_have_no_top5() -> None:
    assert "top5" not in run(*random_case(5), 8)
    assert "top5" in run(*random_case(6), 8)


def test_a_learner_that_cannot_decide_is_not_right_by_default() -> None:
    found = run(np.zeros((10, 4), np.float32), np.array([0, 1, 2, 3]), 4)
    assert found["top1"] == 0.25
    assert found["loss"] == pytest.approx(np.log(4))


def test_large_logits_do_not_overflow() -> None:
    logits = np.array([[3e38, -3e38, 0.0]] * 2, np.float32)
    assert run(logits, np.array([0, 0]), 2)["loss"] == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_logit_that_is_not_finite_is_refused(value: float) -> None:
    logits, targets = random_case(3)
    logits[7, 1] = value
    with pytest.raises(UserError, match="not finite"):
        run(logits, targets, 8)


def test_rows_that_fill_a_batch_up_may_be_anything() -> None:
    logits, targets = random_case(3)
    before = run(logits, targets, 64)
    logits[99] = np.nan
    assert run(logits, targets, 64) == before
