"""Metrics of images that may have several classes, against scikit-learn's and MedMNIST's definitions."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, log_loss, roc_auc_score

from mlx_peft.data import Batch
from mlx_peft.report import evaluation, tables
from mlx_peft.report.gather import FinishedRun as Run
from mlx_peft.report.summary import metrics_line
from mlx_peft.tasks.metrics import Evaluation
from mlx_peft.tasks.multi_label import MULTI_LABEL
from mlx_peft.tasks.multi_label_metrics import FIGURES
from mlx_peft.tasks.registry import leading
from mlx_peft.tasks.single_label import SINGLE_LABEL
from mlx_peft.training.evaluate import answers, evaluate, examined

EXACT = 1e-12  # float64; only the order of sums differs
CLASSES = 6


def case(rows: int = 120, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are right more often than not, and whether each class is there: the last is rare."""
    rng = np.random.default_rng(seed)
    present = rng.random((rows, CLASSES)) < np.linspace(0.5, 0.05, CLASSES)
    return (rng.normal(0, 1, present.shape) + 1.5 * present - 1).astype(np.float32), present


def run(logits: np.ndarray, present: np.ndarray, size: int = 7) -> Evaluation:
    """Evaluated in batches, the last of which is filled up with rows of zeros."""
    batches = []
    for first in range(0, len(logits), size):
        some = np.arange(first, min(first + size, len(logits)))
        targets = np.zeros((size, logits.shape[1], 2), np.float32)
        targets[: len(some)] = np.eye(2)[present[some].astype(int)]
        rows = np.resize(some, size).astype(np.int32).view(np.uint8).reshape(-1, 1, 1, 4)
        batches.append(Batch(rows, targets, np.arange(len(some))))
    model: Any = SimpleNamespace(logits=lambda images: logits[images.reshape(-1, 4).view(np.int32)[:, 0]])
    found = examined(answers(model, batches), MULTI_LABEL, logits.shape[1])
    assert evaluate(model, batches, MULTI_LABEL, logits.shape[1]) == found.metrics
    return found


def medmnists(present: np.ndarray, odds: np.ndarray) -> dict[str, float]:
    """``getAUC`` and ``getACC`` of MedMNIST's evaluator, for its multi-label task."""
    columns = range(odds.shape[1])
    return {
        "auroc": sum(roc_auc_score(present[:, n], odds[:, n]) for n in columns) / len(columns),
        "accuracy": sum(accuracy_score(present[:, n], odds[:, n] > 0.5) for n in columns) / len(columns),
    }


@pytest.mark.parametrize("size", [7, 120, 128])
def test_metrics_are_scikit_learns_and_medmnists(size: int) -> None:
    logits, present = case()
    found = run(logits, present, size)
    odds = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = medmnists(present, odds) | {
        "map": average_precision_score(present, odds, average="macro"),
        "f1": f1_score(present, odds > 0.5, average="macro", zero_division=0),
        "loss": np.mean([log_loss(present[:, n], odds[:, n]) for n in range(CLASSES)]),
    }
    assert {name: found.metrics[name] for name in expected} == pytest.approx(expected, rel=EXACT)
    assert found.metrics["count"] == 120
    assert found.per_class["support"].tolist() == present.sum(0).tolist()
    np.testing.assert_allclose(found.per_class["auroc"], roc_auc_score(present, odds, average=None), rtol=EXACT)
    assert found.metrics["loss"] == pytest.approx(
        float(torch.nn.BCEWithLogitsLoss()(torch.from_numpy(logits), torch.from_numpy(present.astype(np.float32)))),
        rel=1e-6,  # torch's in float32
    )


def test_a_class_that_all_images_have_or_none_counts_in_the_accuracy_alone() -> None:
    logits, present = case()
    present[:, 1], present[:, 4] = False, True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = run(logits, present)
    rest = [0, 2, 3, 5]
    assert found.metrics["auroc"] == pytest.approx(roc_auc_score(present[:, rest], logits[:, rest]), rel=EXACT)
    assert found.metrics["accuracy"] == pytest.approx(((logits > 0) == present).mean(), rel=EXACT)
    per_class = found.details(tuple("abcdef"))["per_class"]
    assert [per_class[name][1] for name in FIGURES] == [per_class["accuracy"][1], *[None] * 5]
    assert json.loads(json.dumps(found.details(tuple("abcdef"))))["confusion"] is None


def test_a_class_that_is_never_found_has_f1_0_and_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = run(np.full((4, 2), -1, np.float32), np.array([[True, False]] * 2 + [[False, True]] * 2))
    assert (found.metrics["f1"], found.metrics["auroc"]) == (0, 0.5)


def test_where_nothing_else_is_defined_there_are_loss_and_accuracy() -> None:
    found = run(np.ones((4, 2), np.float32), np.ones((4, 2), bool))
    assert found.metrics == {"loss": pytest.approx(np.log1p(np.exp(-1))), "count": 4, "accuracy": 1}
    assert MULTI_LABEL.leading(found.metrics) == leading(found.metrics) == "loss"


def test_large_logits_do_not_overflow() -> None:
    logits, present = np.full((2, 2), 3e38, np.float32), np.eye(2, dtype=bool)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(logits, present).metrics["loss"] == pytest.approx(float(np.float32(3e38)) / 2)


def test_the_leading_metric_is_the_accuracy_then_auroc_then_the_loss() -> None:
    assert leading({"loss": 1.0, "auroc": 0.5, "top1": 0.5}) == "top1"
    assert leading({"loss": 1.0, "auroc": 0.5, "accuracy": 0.9}) == "auroc"
    assert SINGLE_LABEL.leading({"loss": 1.0, "auroc": 0.5, "top1": 0.5}) == "top1"
    score = MULTI_LABEL.score
    assert score({"loss": 1.0, "auroc": 0.6}) > score({"loss": 0.1, "auroc": 0.5})
    assert score({"loss": 0.1, "auroc": 0.5}) > score({"loss": 0.2, "auroc": 0.5})
    assert score({"loss": 0.1}) > score({"loss": 0.2})


@pytest.mark.usefixtures("fine_pictures")
def test_an_evaluation_is_drawn_class_by_class(tmp_path: Path) -> None:
    logits, present = case()
    present[:, 1] = False
    found = run(logits, present)
    details = found.details(("a", "$b$", "c", "d", "e", "f"))
    paths = evaluation.write(tmp_path / "new", "test", found.metrics, details, found.confusion)
    assert [path.name for path in paths] == ["test.json", "test-classes.png", "test-classes.pdf"]
    pixels = np.asarray(Image.open(paths[1]).convert("RGB"))
    assert min(pixels.shape[:2]) > 400
    assert len(np.unique(pixels)) > 20
    result = json.loads(json.dumps({"metrics": {"test": found.metrics}, "details": {"test": details}}))
    assert evaluation.write_result(tmp_path, result) == tmp_path / "evaluation"
    shown = metrics_line("test", found.metrics)
    assert "AUROC" in shown and "mAP" in shown and "top-1" not in shown


def test_tables_show_auroc_where_there_is_no_accuracy() -> None:
    several = Run("a", {"metrics": {"test": {"auroc": 0.75, "loss": 0.2}, "val": {"auroc": 0.5, "loss": 0.3}}}, ())
    single = Run("b", {"metrics": {"test": {"auroc": 0.9, "top1": 0.8, "loss": 0.2}, "val": None}}, ())
    alone = tables.markdown([several])
    assert "test AUROC (%)" in alone and "75.00" in alone and "top-1" not in alone
    both = tables.markdown([several, single])
    assert "test top-1 (%)" in both and "test AUROC (%)" in both and "val top-1" not in both
    assert "AUROC" not in tables.markdown([single])
