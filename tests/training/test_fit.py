"""The training loop: what it logs, selects, refuses, and how it stops."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mlx_peft.config.schema import Experiment
from mlx_peft.core import signals
from mlx_peft.core.errors import UserError
from mlx_peft.core.writing import to_disk
from mlx_peft.training.checkpoint import Position, load_checkpoint
from mlx_peft.training.feed import Feed
from mlx_peft.training.fit import fit
from mlx_peft.training.progress import EpochEvent, Silent, StepEvent
from mlx_peft.training.run import RunFolder, read_metrics
from mlx_peft.training.schedule import learning_rate
from mlx_peft.training.stop import Interrupted, StopSignal

IDENTITY = {"run_id": "1", "splits": {"train": {"sha256": "ab"}}}
TIMINGS = ("images_per_second", "seconds")


class Watcher(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[StepEvent] = []
        self.epochs: list[EpochEvent] = []
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def step(self, event: StepEvent) -> None:
        self.steps.append(event)

    def epoch(self, event: EpochEvent) -> None:
        self.epochs.append(event)


@pytest.fixture
def folder(engine: SimpleNamespace) -> RunFolder:
    engine.out.mkdir()
    return RunFolder(engine.out)


def start(
    engine: SimpleNamespace,
    folder: RunFolder,
    experiment: Experiment,
    *,
    trainer: Any = None,
    watcher: Silent | None = None,
    stop: StopSignal | None = None,
    feed: Feed | None = None,
    identity: dict[str, Any] = IDENTITY,
) -> Position:
    return fit(
        trainer or engine.trainer(),
        experiment,
        feed or engine.feed(experiment, engine.dataset()),
        folder,
        identity=identity,
        progress=watcher or Silent(),
        stop=stop or StopSignal(),
    )


def untimed(path: Path) -> list[dict[str, float]]:
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in read_metrics(path)]


def script(monkeypatch: pytest.MonkeyPatch, *scores: tuple[float, float]) -> None:
    """Lets the evaluations of the loop find these (top1, loss), one after the other."""
    left: Iterator[tuple[float, float]] = iter(scores)

    def scripted(*_: object) -> dict[str, float]:
        top1, loss = next(left)
        return {"top1": top1, "loss": loss, "count": 21}

    monkeypatch.setattr("mlx_peft.training.fit.evaluate", scripted)


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("at", [1, 5, 6, 10, 17])
def test_a_run_stopped_by_a_signal_says_how_to_go_on_and_ends_as_if_it_never_stopped(
    engine: SimpleNamespace, tmp_path: Path, number: int, at: int
) -> None:
    experiment = engine.experiment()
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    for folder in (whole, parts):
        folder.path.mkdir()
    expected = start(engine, whole, experiment)

    class Impatient(Silent):
        def step(self, event: StepEvent) -> None:
            if event.step == at:
                os.kill(os.getpid(), number)

    before = signal.signal(number, signal.SIG_DFL)  # under nohup, SIGHUP is ignored
    with (
        StopSignal().listening() as stop,
        pytest.raises(Interrupted, match="interrupted after step") as caught,
    ):
        start(engine, parts, experiment, watcher=Impatient(), stop=stop)
    assert signal.signal(number, before) is signal.SIG_DFL
    # One step is under way when the loss of the step before is read: it is finished too.
    assert caught.value.step in (at, at + 1)
    assert caught.value.command.words == ("train", str(parts.config)) and caught.value.command.options["resume"]
    watcher = Watcher()
    found = start(engine, parts, experiment, watcher=watcher)
    assert watcher.notes == [f"going on after step {caught.value.step}"]
    assert watcher.steps == [] or watcher.steps[0].step == caught.value.step + 1
    assert untimed(parts.metrics) == untimed(whole.metrics)
    assert (found.best, found.best_epoch, found.step) == (expected.best, expected.best_epoch, expected.step)
    assert parts.best.read_bytes() == whole.best.read_bytes()


def test_a_run_stopped_during_validation_does_not_train_the_epoch_again(
    engine: SimpleNamespace, folder: RunFolder
) -> None:
    experiment = engine.experiment()
    stop = StopSignal()

    class Impatient(Silent):
        def evaluating(self, split: str) -> None:
            stop.requested = True

    with pytest.raises(Interrupted):
        start(engine, folder, experiment, watcher=Impatient(), stop=stop)
    trainer = engine.trainer()
    assert start(engine, folder, experiment, trainer=trainer).step == 18
    assert trainer.log.count(("launch", 6)) == 1
    assert ("launch", 5) not in trainer.log


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_supervisor_that_repeats_itself_changes_nothing(
    engine: SimpleNamespace, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)}

    class Impatient(Silent):
        def step(self, event: StepEvent) -> None:
            if event.step == 1:
                os.kill(os.getpid(), first)

    def slow(path: Path) -> None:
        for number in before:
            os.kill(os.getpid(), number)
        to_disk(path)

    monkeypatch.setattr("mlx_peft.training.checkpoint.to_disk", slow)
    try:
        with StopSignal().listening() as stop, pytest.raises(Interrupted):
            start(engine, folder, engine.experiment(), watcher=Impatient(), stop=stop)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert load_checkpoint(folder.last)[1]["position"]["step"] in (1, 2)


def test_a_run_under_nohup_does_not_hear_that_its_terminal_was_closed() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal().listening() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_that_comes_as_soon_as_it_is_handled_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    handled = signals.handled

    @contextmanager
    def at_once(handler: Any) -> Iterator[dict[int, Any]]:
        with handled(handler) as usual:
            signal.raise_signal(signal.SIGTERM)
            yield usual

    monkeypatch.setattr(signals, "handled", at_once)
    with StopSignal().listening() as stop:
        assert stop.requested


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_has_its_usual_effect(first: int) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt), StopSignal().listening() as stop:
            os.kill(os.getpid(), first)
            assert stop.requested
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_checkpoints_come_every_so_many_steps_and_after_each_epoch(
    engine: SimpleNamespace, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []

    def spy(path: Path, tensors: object, **facts: Any) -> None:
        if path == folder.last:
            saved.append((facts["position"]["step"], facts["position"]["batch"]))

    monkeypatch.setattr("mlx_peft.training.fit.save_checkpoint", spy)
    start(engine, folder, engine.experiment(epochs=2, checkpoint_every=4))
    assert saved == [(4, 4), (6, 0), (8, 2), (12, 6), (12, 0)]


def test_other_data_or_weights_are_refused_on_a_resume_and_named(engine: SimpleNamespace, folder: RunFolder) -> None:
    experiment = engine.experiment(epochs=1)
    start(engine, folder, experiment)
    other = IDENTITY | {"splits": {"train": {"sha256": "cd"}}}
    with pytest.raises(UserError, match=r"splits\.train\.sha256: ab then, cd now"):
        start(engine, folder, experiment, identity=other)
