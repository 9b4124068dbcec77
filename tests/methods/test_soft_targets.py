"""The loss on soft and weighted targets: timm's and torch's, and the same in both backends."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy

# isort: split
import mlx.core as mx

import mlx_peft.backend.entry
import mlx_peft.backend.losses
import torch_ref.entry
import torch_ref.losses
from convert.base import load_base
from mlx_peft.config import schema
from mlx_peft.config.schema import Experiment
from mlx_peft.data.mix import Targets
from mlx_peft.tasks.multi_label import MULTI_LABEL
from mlx_peft.tasks.single_label import SINGLE_LABEL
from mlx_peft.tasks.task import Task
from mlx_peft.tasks.weights import class_weights

ROUNDING = 2e-6  # float32, sums over a handful of rows and classes
CLASSES, ROWS = 7, 6

LOGITS = np.random.default_rng(0).normal(0, 3, (ROWS, CLASSES)).astype(np.float32)
LABELS = np.array([0, 3, 6, 1, 1, 2])


def losses(
    targets: np.ndarray, smoothing: float = 0.0, weight: float | None = None, task: Task = SINGLE_LABEL
) -> list[float]:
    count = task.total_weight(targets) if weight is None else weight
    ours, theirs = mlx_peft.backend.losses.LOSSES[task.name], torch_ref.losses.LOSSES[task.name]
    return [
        float(ours(mx.array(LOGITS), mx.array(targets), mx.array(count), smoothing)),
        float(theirs(torch.from_numpy(LOGITS), torch.from_numpy(targets), count, smoothing)),
    ]


def soft(
    labels: np.ndarray, smoothing: float, classes: int | None = CLASSES, task: Task = SINGLE_LABEL, **config: Any
) -> tuple[np.ndarray, Any]:
    """The targets of a batch of all images, and what their loss is divided by, as the pipeline gives them."""
    data = schema.Data(name="folder", batch_size=len(labels), **config)
    targets, every = Targets(task, labels, data, classes, smoothing), np.arange(len(labels))
    return targets.batch(every), targets.weight(every)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixed_targets_are_smoothed_as_timm_smooths_them(smoothing):
    targets, weight = soft(LABELS, smoothing, augment={"mixup": 1.0})
    mixed = (0.3 * targets + 0.7 * targets[::-1]).astype(np.float32)
    theirs = mixup_target(torch.from_numpy(LABELS), CLASSES, 0.3, smoothing)
    expected = float(SoftTargetCrossEntropy()(torch.from_numpy(LOGITS), theirs))
    np.testing.assert_allclose(losses(mixed, smoothing, weight), expected, rtol=ROUNDING)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("kind", ["balanced", "square_root"])
def test_class_weights_with_label_smoothing_give_torchs_loss(kind, smoothing):
    targets, weight = soft(LABELS, smoothing, class_weights=kind)
    weights = torch.from_numpy(class_weights(LABELS, CLASSES, kind))
    expected = float(
        F.cross_entropy(torch.from_numpy(LOGITS), torch.from_numpy(LABELS), weights, label_smoothing=smoothing)
    )
    np.testing.assert_allclose(losses(targets, smoothing, weight), expected, rtol=ROUNDING)


def test_mixed_images_of_weighted_classes_have_the_smoothed_targets_of_both():
    """Each image's own loss under class weights and smoothing, as torch has it, shared by what is seen of each."""
    targets, weight = soft(LABELS, 0.1, class_weights="balanced", augment={"mixup": 1.0})
    mixed = (0.3 * targets + 0.7 * targets[::-1]).astype(np.float32)
    weights, logits = torch.from_numpy(class_weights(LABELS, CLASSES, "balanced")), torch.from_numpy(LOGITS)
    first, second = (
        F.cross_entropy(logits, torch.from_numpy(labels.copy()), weights, label_smoothing=0.1, reduction="sum")
        for labels in (LABELS, LABELS[::-1])
    )
    expected = float((0.3 * first + 0.7 * second) / weights[LABELS].sum())
    np.testing.assert_allclose(losses(mixed, 0.1, weight), expected, rtol=ROUNDING)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_one_hot_targets_are_labels_and_rows_that_fill_up_add_nothing(smoothing):
    hard = np.append(LABELS[:-2], [-1, -1]).astype(np.int32)
    data = schema.Data(name="folder", batch_size=ROWS, augment={"mixup": 1.0})
    targets, some = Targets(SINGLE_LABEL, LABELS, data, CLASSES, smoothing), np.arange(ROWS - 2)
    found = losses(targets.batch(some), smoothing, targets.weight(some))
    np.testing.assert_allclose(losses(hard, smoothing), found, rtol=ROUNDING)
    assert SINGLE_LABEL.total_weight(hard) == ROWS - 2
    assert SINGLE_LABEL.total_weight(targets.batch(some)) == pytest.approx(ROWS - 2, rel=ROUNDING)
    assert (
        SINGLE_LABEL.total_weight(np.full(3, -1, np.int32))
        == SINGLE_LABEL.total_weight(np.zeros((3, 2), np.float32))
        == 1
    )


def present(seed: int, rows: int = ROWS, classes: int = CLASSES) -> np.ndarray:
    """Labels of images that may have several classes."""
    return np.random.default_rng(seed).integers(0, 2, (rows, classes)).astype(np.uint8)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_several_labels_give_torchs_binary_cross_entropy(smoothing):
    labels = present(1)
    reference = torch.nn.BCEWithLogitsLoss()
    smoothed = torch.from_numpy(labels * (1 - np.float32(smoothing)) + np.float32(smoothing / 2))
    expected = float(reference(torch.from_numpy(LOGITS), smoothed))
    targets, weight = soft(labels, smoothing, task=MULTI_LABEL)
    np.testing.assert_allclose(losses(targets, smoothing, weight, MULTI_LABEL), expected, rtol=ROUNDING)
    padded = targets.copy()
    padded[-2:] = 0
    expected = float(reference(torch.from_numpy(LOGITS[:-2]), smoothed[:-2]))
    np.testing.assert_allclose(losses(padded, smoothing, task=MULTI_LABEL), expected, rtol=ROUNDING)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_several_labels_give_torchs_weighted_loss_of_two_classes_each(smoothing):
    labels = present(2, ROWS)
    labels[0], labels[1] = 0, 1  # so that each class has images with and without it
    targets, weight = soft(labels, smoothing, task=MULTI_LABEL, class_weights="balanced")
    expected = counted = 0.0
    for label, column in enumerate(labels.T):
        logits = torch.from_numpy(np.stack([np.zeros(ROWS, np.float32), LOGITS[:, label]], -1))
        weights, answers = torch.from_numpy(class_weights(column, 2, "balanced")), torch.from_numpy(column.astype(int))
        expected += float(F.cross_entropy(logits, answers, weights, label_smoothing=smoothing, reduction="sum"))
        counted += float(weights[answers].sum())
    np.testing.assert_allclose(losses(targets, smoothing, weight, MULTI_LABEL), expected / counted, rtol=ROUNDING)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_gradient_of_several_labels_is_torchs(build, batch, accumulate):
    images, _ = batch
    labels = present(4, len(images), 5)
    trainer = build({"name": "linear"}, train={"accumulate": accumulate}, task=MULTI_LABEL)
    logits = torch.from_numpy(trainer.model.logits(images)).requires_grad_()
    expected = torch.nn.BCEWithLogitsLoss()(logits, torch.from_numpy(labels).float())
    expected.backward()
    expected = float(expected.detach())
    targets = np.stack([1 - labels, labels], -1).astype(np.float32)
    loss, gradients = trainer.loss_and_gradients(images, targets)
    np.testing.assert_allclose(loss, expected, rtol=ROUNDING)
    np.testing.assert_allclose(gradients["head.bias"], logits.grad.sum(0).numpy(), atol=1e-6)
    np.testing.assert_allclose(float(trainer.train_step(images, targets, 0.01)), expected, rtol=ROUNDING)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_on_smoothed_targets_is_the_step_on_labels(build, batch, accumulate):
    images, labels = batch
    smoothed = soft(labels, 0.1, 5, augment={"mixup": 1.0})
    found = []
    for targets, weight in ((labels, None), smoothed):
        trainer = build({"name": "linear"}, train={"accumulate": accumulate, "label_smoothing": 0.1})
        loss = float(trainer.train_step(images, targets, 0.01, weight=weight))
        found.append((loss, trainer.model.adapter()["head.weight"]))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=ROUNDING)
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-6)


def test_a_rare_class_weighs_more_in_the_gradient(build, batch):
    images, labels = batch
    trainer = build({"name": "linear"})
    targets = np.eye(5, dtype=np.float32)[labels]
    targets[3] *= 100
    _, gradients = trainer.loss_and_gradients(images, targets)
    _, alone = trainer.loss_and_gradients(images[3:], labels[3:])
    np.testing.assert_allclose(gradients["head.bias"], alone["head.bias"], atol=0.05)


def trainer(backend, task):
    experiment = Experiment.model_validate(
        {
            "model": {
                "name": "vit_tiny_patch16_224",
                "weights": "none",
                "image_size": 16,
                "args": {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3},
            },
            "method": {"name": "full"},
            "data": {"name": "digits", "batch_size": 4, "augment": {"mixup": 1.0}},
            "train": {"label_smoothing": 0.1},
        }
    )
    return backend.build_trainer(experiment, 5, replace(load_base(experiment.model, 5, 0), task=task))


def random_batch(rng):
    """Small images, to be resized in the step, and weighted soft targets, the last row filling up."""
    targets = rng.dirichlet(np.ones(5), 4) * rng.uniform(0.5, 2, (4, 1))
    targets[3] = 0
    return rng.integers(0, 256, (4, 8, 8, 3), np.uint8), targets.astype(np.float32)


def several_batch(rng):
    """As ``random_batch``, of images that may have several classes."""
    labels = rng.integers(0, 2, (4, 5))
    targets = np.eye(2, dtype=np.float32)[labels] * rng.uniform(0.5, 2, (5, 2)).astype(np.float32)
    targets[3] = 0
    return rng.integers(0, 256, (4, 8, 8, 3), np.uint8), targets


MADE = [(SINGLE_LABEL, random_batch), (MULTI_LABEL, several_batch)]


@pytest.mark.parametrize(("task", "make"), MADE)
def test_the_backends_agree_on_soft_weighted_targets(task, make):
    rng = np.random.default_rng(0)
    ours, theirs = (trainer(backend, task) for backend in (mlx_peft.backend.entry, torch_ref.entry))
    images, targets = make(rng)
    (loss, gradients), (reference, expected) = (one.loss_and_gradients(images, targets) for one in (ours, theirs))
    np.testing.assert_allclose(loss, reference, rtol=ROUNDING)
    for name, gradient in expected.items():
        error = np.linalg.norm(gradients[name] - gradient) / max(np.linalg.norm(gradient), 1e-6)
        assert error < 1e-5, name  # float32 through a block, as tests/parity has it
    for _ in range(3):
        images, targets = make(rng)
        losses = [float(one.train_step(images, targets, 1e-3)) for one in (ours, theirs)]
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


@pytest.mark.parametrize(("task", "make"), MADE)
def test_the_step_is_compiled_once_for_soft_targets(task, make, compiled):
    one = trainer(mlx_peft.backend.entry, task)
    traced, original = [], one.loss
    one.loss = lambda *arguments: traced.append(1) or original(*arguments)
    rng = np.random.default_rng(0)
    for _ in range(4):
        float(one.train_step(*make(rng), 0.01))
    assert len(traced) == 1
