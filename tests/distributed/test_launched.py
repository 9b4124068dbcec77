"""What launchers tell the processes that they start, and what is said where they tell a part of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import mlx_peft.backend.world
import torch_ref.world
from mlx_peft.cli.app import app
from mlx_peft.core.errors import UserError
from mlx_peft.core.world import launched

WHOLE = {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


@pytest.fixture(autouse=True)
def nobody_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*WHOLE, "LOCAL_RANK", "MLX_RANK", "MLX_HOSTFILE"):
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
