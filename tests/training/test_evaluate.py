"""Metrics over padded batches."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import log_loss, top_k_accuracy_score

from mlx_peft.core.errors import UserError
from mlx_peft.data import Batch
from mlx_peft.tasks import metrics
from mlx_peft.tasks.metrics import SHOWN, Answers
from mlx_peft.tasks.multi_label import MULTI_LABEL
from mlx_peft.tasks.single_label import SINGLE_LABEL
from mlx_peft.tasks.single_label_metrics import MATRIX
from mlx_peft.training.evaluate import evaluate, examined
from mlx_peft.training.progress import Metrics


def run(logits: np.ndarray, targets: np.ndarray, size: int) -> Metrics:
    """Evaluates a model whose logits are given row by row; the rows that fill the last batch up are nonsense."""
    batches = []
    for first in range(0, len(targets), size):
        some = targets[first : first + size]
        rows = np.full((size, 1, 1, 3), 99, np.uint8)
        rows[: len(some), 0, 0, 0] = np.arange(first, first + len(some))
        padded = np.concatenate([some, np.full(size - len(some), -1)]).astype(np.int32)
        batches.append(Batch(rows, padded, np.arange(len(some))))
    model: Any = SimpleNamespace(logits=lambda images: logits[images[:, 0, 0, 0]])
    return evaluate(model, batches, SINGLE_LABEL, logits.shape[1])


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


def test_a_model_that_cannot_decide_is_not_right_by_default() -> None:
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


BATCH = 50


def generated(images: int, classes: int, several: bool) -> Iterator[Answers]:
    """Answers that nobody keeps, batch after batch; of few classes, so that little is to be computed."""
    rng = np.random.default_rng(0)
    for _ in range(0, images, BATCH):
        logits = rng.normal(0, 1, (BATCH, classes)).astype(np.float32).astype(np.float64)
        targets = rng.integers(0, 3, BATCH)
        yield logits, np.eye(2, dtype=np.float32)[np.eye(classes, dtype=int)[targets]] if several else targets


def peak(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("several", "auroc", "most"), [(False, False, 0), (False, True, 4), (True, True, 5)], ids=["plain", "auroc", "both"]
)
def test_of_an_image_and_class_no_more_is_kept_than_its_metrics_need(
    several: bool, auroc: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing at all where the sums over batches say it; a float32 for the AUROC, and where it is one of several
    labels, whether it is there."""
    few, many, classes = 500, 2000, 600
    monkeypatch.setattr(metrics, "BLOCK", 70 * classes)  # of images, which are no whole number of batches

    def work(images: int) -> Callable[[], object]:
        task = MULTI_LABEL if several else SINGLE_LABEL
        return lambda: examined(generated(images, classes, several), task, classes, auroc=auroc)

    work(few)()  # what is imported and kept at the first call is not counted
    grown = peak(work(many)) - peak(work(few))
    # Beside it an image has a few numbers, and scikit-learn makes some more of them: less than 300 bytes.
    assert grown / ((many - few) * classes) < most + 0.5


def test_without_its_logits_an_evaluation_says_the_same() -> None:
    classes = SHOWN + 1
    whole, summed = (
        examined(generated(200, classes, False), SINGLE_LABEL, classes, auroc=auroc) for auroc in (True, False)
    )
    assert summed.confusion is None
    assert summed.metrics == {name: value for name, value in whole.metrics.items() if name != "auroc"}
    assert whole.confusion is not None and whole.confusion.sum() == 200


def test_of_very_many_classes_there_is_no_matrix_of_all_pairs() -> None:
    classes = 10 * MATRIX
    logits = np.zeros((2, classes))
    logits[[0, 1], [5, 7]] = 9
    found = examined([(logits, np.array([5, 7]))], SINGLE_LABEL, classes)
    assert found.confusion is None
    assert found.metrics["f1"] == 1


def test_numbers_held_by_class_come_back_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "BLOCK", 7 * 3)
    rows = np.random.default_rng(0).normal(0, 1, (50, 3)).astype(np.float32)
    columns = metrics.Columns(np.float32)
    for first, last in ((0, 1), (1, 1), (1, 30), (30, 35), (35, 50)):
        columns.add(rows[first:last])
    assert len(columns) == 50
    assert all(np.array_equal(columns.column(label), rows[:, label]) for label in range(3))
