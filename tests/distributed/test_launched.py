"""What launchers tell the processes that they start, and what is said where they tell a part of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import mlx_peft.backend.world
import torch_ref.device
import torch_ref.world
from mlx_peft.cli.app import app
from mlx_peft.core.errors import UserError
from mlx_peft.core.launched import launched

WHOLE = {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


@pytest.fixture(autouse=True)
def nobody_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*WHOLE, "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MLX_RANK", "MLX_HOSTFILE"):
        monkeypatch.delenv(name, raising=False)


def tell(patch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        patch.setenv(name, value)


def test_a_rank_is_what_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launched() == (0, 1)
    tell(monkeypatch, WHOLE)
    assert launched() == (1, 3)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "2"}, "2 processes, and nobody set RANK, MASTER_ADDR, MASTER_PORT: start them with torchrun"),
        (WHOLE | {"MASTER_ADDR": ""}, "nobody set MASTER_ADDR: start"),
        (WHOLE | {"WORLD_SIZE": "two"}, "WORLD_SIZE should be a number, as torchrun sets it, not 'two'"),
        (WHOLE | {"RANK": "3"}, "RANK is 3, and should be below WORLD_SIZE, 3"),
    ],
)
def test_torchs_processes_are_told_in_whole(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    tell(monkeypatch, variables)
    with pytest.raises(UserError, match=message):
        torch_ref.world.World()


def test_a_process_of_mlx_that_cannot_join_the_others_does_not_train_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_RANK", "1")
    with pytest.raises(UserError, match="MLX_RANK says that this is process 1 of several, which MLX could not join"):
        mlx_peft.backend.world.World()


FIRST, LATER = ["192.0.2.1:1"], ["192.0.2.2:1"]


@pytest.mark.parametrize(
    ("variables", "hosts", "tells"),
    [
        ({}, None, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, None, True),
        ({"RANK": "1", "LOCAL_RANK": "1"}, None, False),
        ({"RANK": "2", "LOCAL_RANK": "0"}, None, True),
        ({"MLX_RANK": "0"}, [FIRST, FIRST, LATER], True),
        ({"MLX_RANK": "1"}, [FIRST, FIRST, LATER], False),
        ({"MLX_RANK": "2"}, [FIRST, FIRST, LATER], True),
        ({"MLX_RANK": "1"}, [], True),
    ],
)
def test_a_mistake_in_the_command_is_told_once_on_each_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variables: dict[str, str], hosts: object, tells: bool
) -> None:
    tell(monkeypatch, variables)
    if hosts is not None:
        (tmp_path / "hosts.json").write_text(json.dumps(hosts))
        monkeypatch.setenv("MLX_HOSTFILE", str(tmp_path / "hosts.json"))
    done = CliRunner().invoke(app, ["train", "quickstart", "train.epoch=1"], obj="torch")
    assert done.exit_code == 2
    assert ("train.epoch: unknown key" in done.stderr) == tells
    assert tells or not done.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train quickstart --nonsense", "No such option: --nonsense"),
        ("train quickstart --device tpu", "--device should be auto, cpu, mps"),
        ("train quickstart --device mps", "device: mps is not here"),
        ("train quickstart --resume --overwrite", "choose one"),
        ("train", "Missing argument 'CONFIG'"),
        ("train quickstart --out=", "--out= has nothing behind it"),
        ("trian quickstart", "No such command 'trian'"),
        ("--verse", "No such option: --verse"),
    ],
)
def test_so_is_a_wrong_flag_and_a_device_that_is_not_here(
    monkeypatch: pytest.MonkeyPatch, words: str, message: str
) -> None:
    for rank in "01":
        tell(monkeypatch, {"RANK": rank, "LOCAL_RANK": rank})
        done = CliRunner().invoke(app, words.split(), obj="torch")
        assert done.exit_code == 2
        assert (message in done.stderr) == (rank == "0"), done.stderr
        assert rank == "0" or not done.output


def test_of_more_processes_than_gpus_the_first_one_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has no GPU is never the first."""
    monkeypatch.setattr(torch_ref.device.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch_ref.device.torch.cuda, "device_count", lambda: 2)
    tell(monkeypatch, WHOLE | {"RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "3"})
    done = CliRunner().invoke(app, ["train", "quickstart"], obj="torch")
    assert done.exit_code == 2
    assert "start no more than there are here, 2" in done.stderr
    tell(monkeypatch, {"LOCAL_WORLD_SIZE": "2"})
    with pytest.raises(UserError, match="device: cuda:1 is one GPU, and each of 2 processes takes one of its own"):
        torch_ref.device.use("cuda:1")
    tell(monkeypatch, {"LOCAL_RANK": "one"})
    with pytest.raises(UserError, match="LOCAL_RANK should be a number"):
        torch_ref.device.use("cuda")
