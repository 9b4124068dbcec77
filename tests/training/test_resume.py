"""Where a run goes on: the checkpoint before a damaged one, and which files are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from training.resuming import Watcher, begun, outcome

from mlx_peft.config.files import load as load_config
from mlx_peft.core.errors import UserError
from mlx_peft.training.checkpoint import load_checkpoint, save_checkpoint
from mlx_peft.training.fit import Loop
from mlx_peft.training.run import RunFolder
from mlx_peft.training.train import train


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
