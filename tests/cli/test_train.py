"""``train``: which folder a run goes to, and what may be done with a folder that holds one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlx_peft.config.files import dump
from mlx_peft.training.run import RunFolder
from mlx_peft.training.train import train


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """What the engine is asked for, in its place."""
    found: list[SimpleNamespace] = []

    def noted(experiment: Any, out: Path, **options: Any) -> Any:
        found.append(SimpleNamespace(experiment=experiment, out=out, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr("mlx_peft.training.train.train", noted)
    return found


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "lora-mlx-0"),
        (["method.rank=16"], "lora-mlx-0-rank=16"),
        (["train.epochs=5", "method.rank=16"], "lora-mlx-0-rank=16-epochs=5"),
        (["method.rank=16", "train.epochs=5"], "lora-mlx-0-rank=16-epochs=5"),
        (["method.targets=[q, v, fc1]"], "lora-mlx-0-targets=q,v,fc1"),
        (["method.name=linear", "seed=3"], "linear-mlx-3"),
        (["data.root=/home/ann/photos 2/"], "lora-mlx-0-root=photos-2"),
        (["data.threads=4", "train.log_every=1"], "lora-mlx-0"),
        (["data.split.seed=1"], "lora-mlx-0-seed=1"),
        (["train.optimizer.lr=1e-3"], "lora-mlx-0-lr=0.001"),
    ],
)
def test_a_folder_s_name_has_what_was_changed(
    command: Any, asked: list[SimpleNamespace], overrides: list[str], name: str
) -> None:
    command("train", "quickstart", *overrides)
    assert asked[0].out == Path("runs/quickstart") / name


def test_a_name_stays_short_and_is_another_for_other_changes(command: Any, asked: list[SimpleNamespace]) -> None:
    for rank in (2, 3):
        patterns = ", ".join(f"'blocks.{block}.attn.qkv': {rank}" for block in range(4))
        command("train", "quickstart", f"method.rank_pattern={{{patterns}}}", "train.epochs=7")
    first, second = (one.out.name for one in asked)
    assert first != second and max(len(first), len(second)) <= 120


def test_a_run_goes_on_by_its_folder(command: Any, engine: SimpleNamespace) -> None:
    train(engine.experiment(), engine.out)
    own = engine.out / "config.yaml"
    refused = command("train", engine.out)
    assert refused.exit_code == 2 and f"say --resume; to train another like it, name {own}" in refused.stderr
    elsewhere = command("train", engine.out, "--resume", "--out", "there")
    assert elsewhere.exit_code == 2 and "leave --out out" in elsewhere.stderr


def test_what_a_run_that_goes_on_is_asked_for(command: Any, asked: list[SimpleNamespace], engine: Any) -> None:
    experiment = engine.experiment()
    experiment = experiment.model_copy(update={"data": experiment.data.model_copy(update={"name": "digits"})})
    run = Path("mine")
    run.mkdir()
    RunFolder(run).config.write_text(dump(experiment))
    command("train", run, "train.epochs=20", "--resume", "--weights", "base.safetensors")
    one = asked[0]
    assert (one.out, one.experiment.train.epochs, one.weights, one.resume) == (run, 20, "base.safetensors", True)


def test_going_on_and_replacing_exclude_each_other(command: Any) -> None:
    done = command("train", "quickstart", "--resume", "--overwrite")
    assert done.exit_code == 2 and "choose one" in done.stderr


def test_weights_of_a_run_that_has_not_begun_stand_in_its_configuration(command: Any) -> None:
    done = command("train", "quickstart", "--weights", "base.safetensors")
    assert done.exit_code == 2 and "write model.weights=FILE" in done.stderr


def test_a_folder_that_holds_a_run_names_the_ways_out(command: Any) -> None:
    run = Path("mine")
    run.mkdir()
    RunFolder(run).config.touch()
    done = command("train", "quickstart", "--out", run)
    assert done.exit_code == 2 and "(--resume, --out RUN, --overwrite)" in done.stderr


def test_what_is_to_go_on_and_is_no_run_is_said_to_be_none(command: Any) -> None:
    (Path("runs") / "mine").mkdir(parents=True)
    (Path("runs") / "mine" / "config.yaml").touch()
    for name, message in {
        "runs": "runs is a folder that holds no run: it has no config.yaml",
        "nothere": "there is no run nothere",
        "runs/mne": "there is no run runs/mne; did you mean 'mine'?",
        "nothere.yaml": "nothere.yaml: no such file",
    }.items():
        done = command("train", name, "--resume")
        assert done.exit_code == 2 and done.stderr == f"error: {message}\n"
