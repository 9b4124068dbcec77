"""What may be changed of a run before it goes on, and what may not."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from training.resuming import Watcher, begun

from convert.adapters.peft import read_adapter
from mlx_peft.config.files import load as load_config
from mlx_peft.config.schema import Experiment
from mlx_peft.core.bounds import LONGEST_PATH
from mlx_peft.core.errors import UserError
from mlx_peft.studies import ready
from mlx_peft.training.checkpoint import load_checkpoint, save_checkpoint
from mlx_peft.training.prepare import describe_splits
from mlx_peft.training.run import RunFolder, run_id
from mlx_peft.training.train import train

# What may be changed on the way.


def changed(experiment: Experiment, **train: Any) -> Experiment:
    return Experiment.model_validate(experiment.model_dump() | {"train": experiment.model_dump()["train"] | train})


def test_a_diverged_run_goes_on_as_its_message_advises_and_the_result_says_so(
    engine: SimpleNamespace, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = type(engine.trainer())
    step = trainer.train_step

    def diverging(self: Any, images: Any, targets: Any, lr: float, **options: Any) -> Any:
        loss = step(self, images, targets, lr, **options)
        if lr > 0.05 and self.count == 9:
            loss.value = np.nan
        return loss

    monkeypatch.setattr(trainer, "train_step", diverging)
    with pytest.raises(UserError, match=r"lower train\.optimizer\.lr .*or train\.clip_norm=1") as diverged:
        train(engine.experiment(), engine.out)
    assert diverged.value.command is not None and diverged.value.command.options["resume"]
    lower = changed(engine.experiment(), optimizer={"name": "sgd", "lr": 0.01}, clip_norm=1.0)
    watcher = Watcher()
    result = train(lower, engine.out, resume=True, progress=watcher)
    assert [(change["step"], change["key"], change["before"], change["now"]) for change in result["changes"]] == [
        (6, "train.optimizer.lr", 0.1, 0.01),
        (6, "train.clip_norm", None, 1.0),
    ]
    assert "train.optimizer.lr: 0.1 until step 6, 0.01 from there" in watcher.notes[0]
    assert load_config(RunFolder(engine.out).config) == lower
    splits = describe_splits(engine.dataset())
    assert result["run_id"] not in (run_id(engine.experiment(), splits), run_id(lower, splits))


def test_a_change_is_kept_over_a_second_interruption(engine: SimpleNamespace) -> None:
    begun(engine, at=8)
    lower = changed(engine.experiment(), optimizer={"name": "sgd", "lr": 0.01})
    with pytest.raises(RuntimeError):
        train(lower, engine.out, resume=True, progress=Watcher(14))
    result = train(lower, engine.out, resume=True)
    assert [change["key"] for change in result["changes"]] == ["train.optimizer.lr"]


def test_a_damaged_checkpoint_fills_no_screen_and_no_record(engine: SimpleNamespace) -> None:
    begun(engine, at=8)
    path = RunFolder(engine.out).last
    tensors, facts = load_checkpoint(path)
    long = "a" * 100_000
    save_checkpoint(path, tensors, **facts | {"settings": facts["settings"] | {"train.label_smoothing": long}})
    with pytest.raises(UserError, match="label_smoothing: aaa") as refused:
        train(engine.experiment(), engine.out, resume=True)
    assert len(str(refused.value)) < 1000

    save_checkpoint(path, tensors, **facts | {"settings": facts["settings"] | {"train.early_stopping": long}})
    watcher = Watcher()
    result = train(engine.experiment(), engine.out, resume=True, progress=watcher)
    assert [change["key"] for change in result["changes"]] == ["train.early_stopping"]
    assert len(result["changes"][0]["before"]) <= LONGEST_PATH
    assert all(len(note) < 1000 for note in watcher.notes)


def test_what_no_message_advises_may_not_be_changed(engine: SimpleNamespace) -> None:
    begun(engine)
    with pytest.raises(UserError, match=r"train\.label_smoothing: 0.0 there, 0.1 now"):
        train(changed(engine.experiment(), label_smoothing=0.1), engine.out, resume=True)


def test_a_finished_run_takes_no_change(engine: SimpleNamespace) -> None:
    train(engine.experiment(), engine.out)
    with pytest.raises(UserError, match=r"train\.optimizer\.lr: 0.1 there, 0.01 now"):
        train(changed(engine.experiment(), optimizer={"name": "sgd", "lr": 0.01}), engine.out, resume=True)


def test_a_sweep_does_not_take_a_changed_run_for_one_of_its_own(engine: SimpleNamespace) -> None:
    begun(engine)
    lower = changed(engine.experiment(), optimizer={"name": "sgd", "lr": 0.01})
    train(lower, engine.out, resume=True)
    splits = describe_splits(engine.dataset())
    for experiment in (engine.experiment(), lower):
        with pytest.raises(UserError, match=r"train\.optimizer\.lr|was changed on the way"):
            ready.check_folder(RunFolder(engine.out), experiment, splits)


def test_broken_images_may_be_skipped_from_now_on(engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(engine)
    dataset = engine.dataset()
    fewer = replace(dataset, train=dataset.train.take(np.arange(39), "train"))  # five steps an epoch, not six
    engine.install(fewer)
    with pytest.raises(UserError, match=r"splits\.train\.size: 44 then, 39 now"):
        train(engine.experiment(), engine.out, resume=True)
    values = engine.experiment().model_dump()
    skipping = Experiment.model_validate(values | {"data": values["data"] | {"unreadable": "skip"}})
    result = train(skipping, engine.out, resume=True)
    assert {change["key"] for change in result["changes"]} == {
        "data.unreadable", "splits.train.size", "splits.train.sha256"
    }  # fmt: skip
    assert read_adapter(engine.out / "adapter").num_classes == 3


def test_a_split_with_other_images_in_the_place_of_broken_ones_is_refused(engine: SimpleNamespace) -> None:
    """They may be some that were trained on."""
    begun(engine)
    dataset = engine.dataset()
    train_split, val = dataset.train, dataset.val
    moved = replace(val, images=train_split.images.take(np.arange(val.size)), labels=train_split.labels[: val.size])
    engine.install(replace(dataset, train=train_split.take(np.arange(val.size, train_split.size), "train"), val=moved))
    values = engine.experiment().model_dump()
    skipping = Experiment.model_validate(values | {"data": values["data"] | {"unreadable": "skip"}})
    with pytest.raises(UserError, match=r"its data or weights have changed(?s:.*)splits\.val\.sha256"):
        train(skipping, engine.out, resume=True)


def test_a_split_that_is_gone_is_refused(engine: SimpleNamespace) -> None:
    begun(engine)
    engine.install(replace(engine.dataset(), val=None))
    values = engine.experiment().model_dump()
    skipping = Experiment.model_validate(values | {"data": values["data"] | {"unreadable": "skip"}})
    with pytest.raises(UserError, match="its data or weights have changed"):
        train(skipping, engine.out, resume=True)
