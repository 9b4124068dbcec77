"""The training loop: what it logs, selects and refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from training.fitting import IDENTITY, Watcher, start

from mlx_peft.core.errors import UserError
from mlx_peft.training.checkpoint import load_checkpoint
from mlx_peft.training.progress import EpochEvent, Silent
from mlx_peft.training.run import RunFolder, read_metrics
from mlx_peft.training.schedule import learning_rate


def script(monkeypatch: pytest.MonkeyPatch, *scores: tuple[float, float]) -> None:
    """Lets the evaluations of the loop find these (top1, loss), one after the other."""
    left: Iterator[tuple[float, float]] = iter(scores)

    def scripted(*_: object) -> dict[str, float]:
        top1, loss = next(left)
        return {"top1": top1, "loss": loss, "count": 21}

    monkeypatch.setattr("mlx_peft.training.fit.measured", scripted)


def test_a_loss_is_read_only_after_the_next_step_is_under_way(engine: SimpleNamespace, folder: RunFolder) -> None:
    trainer = engine.trainer()
    start(engine, folder, engine.experiment(epochs=1), trainer=trainer)
    expected = [("launch", 0)]
    for number in range(1, 6):
        expected += [("launch", number), ("read", number - 1)]
    assert trainer.log == [*expected, ("read", 5)]


def test_training_learns(engine: SimpleNamespace, folder: RunFolder) -> None:
    watcher = Watcher()
    position = start(engine, folder, engine.experiment(epochs=5), watcher=watcher)
    assert position.best["top1"] > 0.8
    assert watcher.epochs[-1].train_loss < 0.7 * watcher.epochs[0].train_loss


def test_metrics_hold_the_first_step_every_few_steps_and_every_epoch(
    engine: SimpleNamespace, folder: RunFolder
) -> None:
    watcher = Watcher()
    experiment = engine.experiment(epochs=2, log_every=4)
    start(engine, folder, experiment, watcher=watcher)
    lines = read_metrics(folder.metrics)
    steps = [line for line in lines if "loss" in line]
    epochs = [line for line in lines if "train_loss" in line]
    assert [(line["step"], line["epoch"]) for line in steps] == [(1, 1), (4, 1), (8, 2), (12, 2)]
    assert [(line["step"], line["epoch"]) for line in epochs] == [(6, 1), (12, 2)]
    assert set(steps[0]) == {"step", "epoch", "loss", "lr", "images_per_second"}
    assert set(epochs[0]) == {
        *("step", "epoch", "train_loss", "seconds", "val_top1", "val_loss", "val_balanced_accuracy"),
        *("val_precision", "val_recall", "val_f1", "val_auroc", "val_ece"),
    }
    schedule = experiment.train.schedule
    assert [line["lr"] for line in steps] == [learning_rate(step, 12, 0.1, schedule) for step in (0, 3, 7, 11)]
    assert [event.step for event in watcher.steps] == list(range(1, 13))
    assert [event.step for event in watcher.steps if event.logged] == [1, 4, 8, 12]
    assert [event.loss for event in watcher.steps if event.logged] == [line["loss"] for line in steps]


def test_the_epochs_loss_is_the_mean_over_its_images(engine: SimpleNamespace, folder: RunFolder) -> None:
    watcher = Watcher()
    start(engine, folder, engine.experiment(epochs=1), watcher=watcher)
    counts = [8, 8, 8, 8, 8, 4]
    expected = sum(event.loss * count for event, count in zip(watcher.steps, counts, strict=True)) / 44
    assert watcher.epochs[0].train_loss == expected


def test_the_most_accurate_epoch_is_selected_then_the_one_of_lower_loss_then_the_earlier(
    engine: SimpleNamespace, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, (0.5, 0.9), (0.8, 0.7), (0.8, 0.6), (0.8, 0.6), (0.7, 0.1))
    watcher = Watcher()
    position = start(engine, folder, engine.experiment(epochs=5), watcher=watcher)
    assert (position.best_epoch, position.best["loss"]) == (3, 0.6)
    assert [event.best for event in watcher.epochs] == [True, True, True, False, False]
    assert load_checkpoint(folder.best)[1]["epoch"] == 3


def test_the_best_parameters_are_those_of_the_selected_epoch(
    engine: SimpleNamespace, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, (0.5, 0.9), (0.8, 0.7), (0.1, 0.9))
    trainer = engine.trainer()

    class Keep(Silent):
        def __init__(self) -> None:
            self.found: list[np.ndarray] = []

        def epoch(self, event: EpochEvent) -> None:
            self.found.append(trainer.model.adapter()["head.weight"])

    keep = Keep()
    start(engine, folder, engine.experiment(), trainer=trainer, watcher=keep)
    np.testing.assert_array_equal(load_checkpoint(folder.best)[0]["head.weight"], keep.found[1])


def test_without_a_validation_split_the_last_epoch_is_selected(engine: SimpleNamespace, folder: RunFolder) -> None:
    experiment = engine.experiment()
    position = start(engine, folder, experiment, feed=engine.feed(experiment, engine.dataset(val=False)))
    assert (position.best_epoch, position.best) == (3, {})
    assert not folder.best.exists()


def test_early_stopping_waits_so_many_epochs_for_a_better_one(
    engine: SimpleNamespace, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, (0.5, 0.9), (0.4, 0.9), (0.6, 0.9), (0.6, 0.9), (0.5, 0.8))
    position = start(engine, folder, engine.experiment(epochs=9, early_stopping=2))
    assert (position.epoch, position.best_epoch, position.step) == (5, 3, 30)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(
    engine: SimpleNamespace, folder: RunFolder, value: float
) -> None:
    trainer = engine.trainer()
    step = trainer.train_step

    def diverging(*batch: Any, **options: Any) -> Any:
        loss = step(*batch, **options)
        loss.value = value if loss.number == 7 else loss.value
        return loss

    trainer.train_step = diverging
    with pytest.raises(
        UserError, match=rf"the loss is {value} at step 8 \(epoch 2\).*lower train.optimizer.lr"
    ) as caught:
        start(engine, folder, engine.experiment(), trainer=trainer)
    assert str(folder.last) in str(caught.value)
    assert load_checkpoint(folder.last)[1]["position"]["step"] == 6


def test_checkpoints_come_every_so_many_steps_and_after_each_epoch(
    engine: SimpleNamespace, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []

    def spy(path: Path, tensors: object, **facts: Any) -> None:
        if path == folder.last:
            saved.append((facts["position"]["step"], facts["position"]["batch"]))

    monkeypatch.setattr("mlx_peft.training.keeping.save_checkpoint", spy)
    start(engine, folder, engine.experiment(epochs=2, checkpoint_every=4))
    assert saved == [(4, 4), (6, 0), (8, 2), (12, 6), (12, 0)]


def test_other_data_or_weights_are_refused_on_a_resume_and_named(engine: SimpleNamespace, folder: RunFolder) -> None:
    experiment = engine.experiment(epochs=1)
    start(engine, folder, experiment)
    other = IDENTITY | {"splits": {"train": {"sha256": "cd"}}}
    with pytest.raises(UserError, match=r"splits\.train\.sha256: ab then, cd now"):
        start(engine, folder, experiment, identity=other)
