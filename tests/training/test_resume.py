"""Where a run goes on: the checkpoint before a damaged one, what may be changed on the way, and what errors leave."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from convert.adapters.peft import read_adapter
from mlx_peft.config.files import load as load_config
from mlx_peft.config.schema import Experiment
from mlx_peft.core.errors import UserError
from mlx_peft.data import Batch
from mlx_peft.studies import ready
from mlx_peft.training import feed as feed_module
from mlx_peft.training.checkpoint import load_checkpoint, save_checkpoint
from mlx_peft.training.fit import Loop
from mlx_peft.training.prepare import describe_splits
from mlx_peft.training.progress import Silent, StepEvent
from mlx_peft.training.run import RunFolder, read_metrics, run_id
from mlx_peft.training.train import train

TIMINGS = ("images_per_second", "seconds")


class Watcher(Silent):
    """Keeps the notes, and raises at a step or an epoch."""

    def __init__(self, at: int | None = None, error: BaseException | None = None) -> None:
        self.at, self.error, self.notes = at, error, list[str]()

    def note(self, text: str) -> None:
        self.notes.append(text)

    def step(self, event: StepEvent) -> None:
        if event.step == self.at:
            raise self.error or RuntimeError("stop here")


def outcome(out: Path) -> dict[str, Any]:
    lines = [{k: v for k, v in line.items() if k not in TIMINGS} for line in read_metrics(out / "metrics.jsonl")]
    result = json.loads((out / "result.json").read_text())
    adapter = {file.name: file.read_bytes() for file in (out / "adapter").iterdir()}
    return {"lines": lines, "adapter": adapter, "result": {k: result[k] for k in ("run_id", "metrics", "selected")}}


@pytest.fixture
def whole(engine: SimpleNamespace, tmp_path: Path) -> dict[str, Any]:
    """The end of the run when nothing happens to it."""
    train(engine.experiment(), tmp_path / "whole")
    return outcome(tmp_path / "whole")


def begun(engine: SimpleNamespace, at: int = 9, **options: Any) -> RunFolder:
    """A run that an error ended after some steps."""
    with pytest.raises(RuntimeError):
        train(engine.experiment(**options), engine.out, progress=Watcher(at))
    return RunFolder(engine.out)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("which", ["last", "metrics"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_ends_the_same(
    engine: SimpleNamespace, whole: dict[str, Any], which: str
) -> None:
    folder = begun(engine)
    damage(getattr(folder, which))
    watcher = Watcher()
    train(engine.experiment(), engine.out, resume=True, progress=watcher)
    assert str(getattr(folder, which)) in watcher.notes[0] and "before it is taken, of step 6" in watcher.notes[0]
    assert outcome(engine.out) == whole


def test_damage_to_both_checkpoints_is_refused_by_name(engine: SimpleNamespace) -> None:
    folder = begun(engine)
    damage(folder.last), damage(folder.previous)
    with pytest.raises(UserError, match=r"(?s)last\.safetensors is not a whole.*previous\.safetensors is not a whole"):
        train(engine.experiment(), engine.out, resume=True)


def test_damaged_parameters_of_the_selected_epoch_are_refused_by_name(engine: SimpleNamespace) -> None:
    folder = begun(engine)
    damage(folder.best)
    with pytest.raises(UserError, match=r"best\.safetensors is not a whole checkpoint"):
        train(engine.experiment(), engine.out, resume=True)


def test_damaged_parameters_that_the_checkpoint_before_comes_before_are_made_again(
    engine: SimpleNamespace, tmp_path: Path
) -> None:
    experiment = engine.experiment(checkpoint_every=5)
    train(experiment, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):  # a second one, which leaves no time for a checkpoint
        train(experiment, engine.out, progress=Watcher(8, KeyboardInterrupt()))
    folder = RunFolder(engine.out)
    damage(folder.best)
    assert [load_checkpoint(path)[1]["position"]["step"] for path in (folder.last, folder.previous)] == [6, 5]
    train(experiment, engine.out, resume=True)
    assert outcome(engine.out) == outcome(tmp_path / "whole")


def test_a_best_file_of_another_epoch_than_the_selected_one_is_not_taken(engine: SimpleNamespace) -> None:
    folder = begun(engine)
    tensors, facts = load_checkpoint(folder.best)
    save_checkpoint(folder.best, tensors, **facts | {"epoch": 2})
    with pytest.raises(UserError, match=r"best\.safetensors is of another epoch than the selected one, 1"):
        train(engine.experiment(), engine.out, resume=True)


def rewritten(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """With other facts, and the right digest of them."""
    tensors, facts = load_checkpoint(path)
    change(facts)
    save_checkpoint(path, tensors, **facts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda facts: facts["position"].update(epoch=5), "of 3 epochs 5 are done"),
        (lambda facts: facts["position"].update(batch=9), "of 6 batches of an epoch 9 are done"),
        (lambda facts: facts["position"].update(batch=-1), r"position\.batch"),
        (lambda facts: facts["position"].update(step=7), "step 7 is after 1 epoch of 6 steps and"),
        (lambda facts: facts["position"].update(loss_sum="much"), r"position\.loss_sum"),
        (lambda facts: facts["position"].update(later=1), r"position\.later"),
        (lambda facts: facts.update(position=[]), "position"),
        (lambda facts: facts.pop("position"), "position"),
        (lambda facts: facts.pop("identity"), "identity"),
        (lambda facts: facts.update(version=2), "of another version of mlx-peft: its facts have the number 2"),
        (lambda facts: facts.update(more=1), "more"),
    ],
)
def test_facts_that_are_none_are_refused_in_words(
    engine: SimpleNamespace, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    folder = begun(engine)
    for path in (folder.last, folder.previous):
        rewritten(path, change)
    with pytest.raises(UserError, match=message) as caught:
        train(engine.experiment(), engine.out, resume=True)
    assert "last.safetensors" in str(caught.value) and "pydantic" not in str(caught.value)


def test_an_epoch_beyond_the_last_trains_no_further(engine: SimpleNamespace) -> None:
    """Even where nothing checks it: a run whose epoch is past the end is at its end."""
    loop = object.__new__(Loop)
    loop.train = engine.experiment().train
    loop.position = SimpleNamespace(epoch=5, epochs_without_improvement=0)  # type: ignore[assignment]
    assert loop.finished


BROKEN_SPLITS = ['{"run_id": "a", "splits": "train"}', '{"run_id": "a", "splits": {"train": "44"}}']


@pytest.mark.parametrize("text", ["[]", "3", "{}", "null", '{"run_id": 3}', "[" * 100_000, "{", *BROKEN_SPLITS])
def test_a_result_that_is_none_is_refused_in_words(engine: SimpleNamespace, text: str) -> None:
    train(engine.experiment(), engine.out)
    RunFolder(engine.out).result.write_text(text)
    for with_digest in (True, False):
        with pytest.raises(UserError, match=r"result\.json .*delete it, and resuming the run"):
            train(engine.experiment(), engine.out, resume=True)
        if with_digest:
            (engine.out / "SHA256SUMS.txt").unlink()


def test_a_result_that_was_deleted_is_made_again(engine: SimpleNamespace, whole: dict[str, Any]) -> None:
    train(engine.experiment(), engine.out)
    RunFolder(engine.out).result.unlink()
    train(engine.experiment(), engine.out, resume=True)
    assert outcome(engine.out) == whole


@pytest.mark.parametrize("name", ["config.yaml", "env.json", "metrics.jsonl", "result.json", "SHA256SUMS.txt"])
def test_a_finished_run_that_was_changed_is_refused_by_the_file_s_name(engine: SimpleNamespace, name: str) -> None:
    train(engine.experiment(), engine.out)
    path = engine.out / name
    path.write_bytes(path.read_bytes().replace(b"0", b"1", 1))
    with pytest.raises(UserError, match=name):
        train(engine.experiment(), engine.out, resume=True)


def test_a_configuration_that_was_changed_on_purpose_is_taken_without_its_line_of_digests(
    engine: SimpleNamespace,
) -> None:
    folder = begun(engine)
    folder.config.write_text(folder.config.read_text().replace("log_every: 2", "log_every: 3"))
    with pytest.raises(UserError, match=r"config\.yaml was damaged or changed .*take the line of config\.yaml out"):
        train(load_config(folder.config), engine.out, resume=True)
    sums = engine.out / "SHA256SUMS.txt"
    sums.write_text("".join(line for line in sums.read_text().splitlines(True) if "config.yaml" not in line))
    assert train(load_config(folder.config), engine.out, resume=True)["status"] == "finished"


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
        patch.setattr("mlx_peft.training.fit.open_trackers", lambda *_: [Failing()])
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
