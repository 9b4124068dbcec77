"""What every task keeps to, whatever it is: those that are registered, and one that tests bring along."""

from __future__ import annotations

import copy
import pickle

import mlx.core as mx
import numpy as np
import pytest
import torch
from regression import REGRESSION, squared_error

# isort: split
import mlx_peft.backend.losses
import torch_ref.losses
from mlx_peft.config.schema import Data
from mlx_peft.tasks.multi_label import MULTI_LABEL
from mlx_peft.tasks.registry import TASKS, classification, figures, leading, leading_metrics
from mlx_peft.tasks.single_label import SINGLE_LABEL
from mlx_peft.tasks.task import Task

ROUNDING = 1e-6  # float32, a dozen terms, and the rows that fill up at another place of the sum
CLASSES = ("cat", "dog", "\x1b[31mred")
LABELS = {
    SINGLE_LABEL: np.array([2, 0, 1, 2, 2], np.int64),
    MULTI_LABEL: np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1], [0, 0, 1]], np.uint8),
    REGRESSION: np.array([[0.5, -1, 2], [0, 0, 0], [3, 1, 0], [1, 1, 1], [2, 0.25, 0]], np.float32),
}
"""Five images of each task; rows 0, 1 and 2 all differ."""
LOGITS = np.random.default_rng(0).normal(0, 2, (5, 3)).astype(np.float32)

every = pytest.mark.parametrize("task", LABELS, ids=lambda task: task.name)


def losses(task: Task, logits: np.ndarray, targets: np.ndarray, count: float, smoothing: float = 0.0) -> list[float]:
    ours = (mlx_peft.backend.losses.LOSSES | {REGRESSION.name: squared_error})[task.name]
    theirs = (torch_ref.losses.LOSSES | {REGRESSION.name: squared_error})[task.name]
    return [
        float(ours(mx.array(logits), mx.array(targets), mx.array(count), smoothing)),
        float(theirs(torch.from_numpy(logits), torch.from_numpy(targets), count, smoothing)),
    ]


def made(task: Task, labels: np.ndarray, rows: int, smoothing: float = 0.0, **options: object) -> np.ndarray:
    config = Data(name="made", **options)
    return task.targets(labels, rows, task.weights(LABELS[task], config, len(CLASSES)), smoothing)


def test_each_task_is_registered_by_its_name_and_has_a_loss_in_each_backend() -> None:
    assert [task.name for task in TASKS.values()] == list(TASKS)
    assert TASKS.keys() == mlx_peft.backend.losses.LOSSES.keys() == torch_ref.losses.LOSSES.keys()
    assert (classification(False), classification(True)) == (SINGLE_LABEL, MULTI_LABEL)


@every
def test_a_task_is_one_value_wherever_it_comes_from(task: Task) -> None:
    assert pickle.loads(pickle.dumps(task)) == copy.deepcopy(task) == task
    assert {task, copy.deepcopy(task)} == {task}
    assert [other for other in LABELS if other == task] == [task]


@every
def test_its_words_fit_together(task: Task) -> None:
    assert task.columns and set(task.columns) <= set(task.figures)
    assert task.hub_metrics.keys() >= {task.columns[0], "loss"}
    assert task.activation in ("softmax", "sigmoid", "identity")
    assert f"{len(CLASSES)} " in task.outputs(len(CLASSES))
    assert task.image and task.agreement and task.hub_task


@every
def test_labels_are_counted_told_apart_and_spread(task: Task) -> None:
    labels = LABELS[task]
    assert task.fault(labels, len(CLASSES)) is None
    assert task.counts(labels, len(CLASSES)).tolist() == [len(task.rows_of(labels, n)) for n in range(len(CLASSES))]
    assert task.differ(labels, labels[0])[:3].tolist() == [False, True, True]
    assert len({task.written(label) for label in labels[:3]}) == len({task.named(row, CLASSES) for row in labels[:3]})
    assert task.strata(labels).shape == (5,) and task.strata(labels).min() >= 0
    task.check_options(Data(name="made"))


@every
@pytest.mark.parametrize("options", [{}, {"augment": {"mixup": 1.0}}], ids=["own", "mixed"])
def test_rows_that_fill_a_batch_up_change_no_loss(task: Task, options: dict[str, object]) -> None:
    whole, filled = (made(task, LABELS[task][:3], rows, **options) for rows in (3, 5))
    assert (whole.shape[1:], whole.dtype) == (filled.shape[1:], filled.dtype)
    count = task.total_weight(whole)
    assert count == task.total_weight(filled) > 0
    assert losses(task, LOGITS, filled, count) == pytest.approx(losses(task, LOGITS[:3], whole, count), rel=ROUNDING)
    assert task.total_weight(filled[3:]) == 1, "nothing is divided by zero"


@every
def test_targets_that_may_be_mixed_are_floats_and_say_what_an_image_is_and_counts(task: Task) -> None:
    targets = made(task, LABELS[task], 5, augment={"mixup": 1.0})
    assert targets.dtype == np.float32
    shares, weight = task.shares(targets[0], len(CLASSES))
    assert shares.shape == (3,) and weight == pytest.approx(1)


@every
def test_an_evaluation_has_the_leading_metric_and_its_loss_is_that_of_training(task: Task) -> None:
    targets = made(task, LABELS[task], 5)
    parts = [(LOGITS[:2].astype(np.float64), targets[:2]), (LOGITS[2:].astype(np.float64), targets[2:])]
    found = task.examined(parts, len(CLASSES), True).metrics
    assert task.leading(found) == task.columns[0]
    assert task.leading({"loss": 1.0}) == "loss"
    expected = losses(task, LOGITS, targets, task.total_weight(targets))
    assert [found["loss"]] * 2 == pytest.approx(expected, rel=ROUNDING)
    assert found["count"] == 5
    better = {task.columns[0]: 0.9, "loss": 2.0}
    assert task.score(better) > task.score(better | {"loss": 3.0}) > task.score({task.columns[0]: 0.8, "loss": 1.0})


@every
def test_answers_are_for_json_and_lines_are_for_a_terminal(task: Task) -> None:
    answers = task.answer(LOGITS[0].astype(np.float64), CLASSES, 3)
    assert len(task.answer(LOGITS[0].astype(np.float64), CLASSES, 1)) == 1
    assert len(answers) == 3
    assert all(type(value) in (str, float) for answer in answers for value in answer.values())
    assert not set("".join(map(task.line, answers))) & set("\x1b\n")
    assert len(task.decided(LOGITS)) == 5


def test_metrics_of_an_unknown_task_are_led_by_the_first_that_knows_them() -> None:
    assert leading_metrics() == ("top1", "auroc")
    assert list(figures()) == ["top1", "top5", "balanced_accuracy", "auroc", "accuracy", "map"]
    assert leading({"loss": 1.0, "close": 0.5}) == "loss"
