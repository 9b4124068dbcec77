"""What an error in the middle of a run leaves, and that it can be gone on from."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from training.resuming import Watcher, outcome

from mlx_peft.core.errors import UserError
from mlx_peft.data import Batch
from mlx_peft.training import feed as feed_module
from mlx_peft.training.checkpoint import load_checkpoint
from mlx_peft.training.run import RunFolder
from mlx_peft.training.train import train

# What an error leaves.


@pytest.mark.parametrize("error", [UserError("images/7.jpg is broken"), MemoryError("no room"), ValueError("anything")])
def test_an_error_among_the_images_leaves_a_checkpoint_of_the_step_it_came_after(
    engine: SimpleNamespace, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    batches = feed_module.train_batches

    def broken(*arguments: Any, **options: Any) -> Iterator[Batch]:
        for number, batch in enumerate(batches(*arguments, **options)):
            if options["epoch"] == 1 and number == 4:
                raise error
            yield batch

    watcher = Watcher()
    with monkeypatch.context() as patch:
        patch.setattr(feed_module, "train_batches", broken)
        with pytest.raises(type(error)):
            train(engine.experiment(), engine.out, progress=watcher)
    assert watcher.notes[-1] == "a checkpoint is written, after step 10: the run can go on from there"
    assert load_checkpoint(RunFolder(engine.out).last)[1]["position"]["step"] == 10
    train(engine.experiment(), engine.out, resume=True)
    assert outcome(engine.out) == whole


@pytest.mark.parametrize("at", ["step", "epoch"])
def test_a_tracker_that_fails_leaves_a_run_that_ends_the_same(
    engine: SimpleNamespace, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    class Failing:
        def __init__(self, *_: object) -> None: ...
        def log(self, record: dict[str, float]) -> None:
            if record["step"] == 6 and ("train_loss" in record) == (at == "epoch"):
                raise UserError("no space left for the events")

        def close(self) -> None: ...

    with monkeypatch.context() as patch:
        patch.setattr("mlx_peft.training.keeping.open_trackers", lambda *_: [Failing()])
        with pytest.raises(UserError, match="no space left for the events"):
            train(engine.experiment(), engine.out)
    train(engine.experiment(), engine.out, resume=True)
    assert outcome(engine.out) == whole


def test_a_step_that_breaks_off_in_the_middle_is_not_kept(
    engine: SimpleNamespace, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = type(engine.trainer())
    step = trainer.train_step

    def halfway(self: Any, *batch: Any, **options: Any) -> Any:
        loss = step(self, *batch, **options)
        if self.count == 9:
            raise MemoryError
        return loss

    watcher = Watcher()
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_step", halfway)
        with pytest.raises(MemoryError):
            train(engine.experiment(), engine.out, progress=watcher)
    assert "no checkpoint could be written before the end (a step was interrupted before its end)" in watcher.notes[-1]
    train(engine.experiment(), engine.out, resume=True)
    assert outcome(engine.out) == whole


@pytest.mark.parametrize("val", [True, False])
def test_parameters_that_are_not_finite_end_the_run_and_are_not_kept(
    engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, val: bool
) -> None:
    """Of the last step too, whose loss is still finite, and where no validation would see it."""
    engine.install(engine.dataset(val=val))
    trainer = type(engine.trainer())
    step = trainer.train_step

    def diverging(self: Any, *batch: Any, **options: Any) -> Any:
        loss = step(self, *batch, **options)
        if self.count == 18:
            self.model.head["head.weight"][0, 0] = np.inf
        return loss

    monkeypatch.setattr(trainer, "train_step", diverging)
    with pytest.raises(UserError, match=r"NaN or infinite numbers in head\.weight at step 18 .*training diverged"):
        train(engine.experiment(), engine.out)
    folder = RunFolder(engine.out)
    assert not folder.adapter.exists() and not folder.result.exists()
    assert load_checkpoint(folder.last)[1]["position"]["step"] == 12
