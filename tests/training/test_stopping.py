"""A run that is stopped by a signal: it says how to go on, and ends as if it never was."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from training.fitting import Watcher, start, untimed

from mlx_peft.core import signals
from mlx_peft.core.writing import to_disk
from mlx_peft.training.checkpoint import load_checkpoint
from mlx_peft.training.progress import Silent, StepEvent
from mlx_peft.training.run import RunFolder
from mlx_peft.training.stop import Interrupted, StopSignal


@pytest.mark.one_in(3)
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
    assert caught.value.command.words == ("train", str(parts.path)) and caught.value.command.options["resume"]
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
