"""A shell completes commands, flags, and the names that commands take."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.completion import completion_init
from typer.testing import CliRunner

from mlx_peft.cli.app import app
from mlx_peft.cli.completing import keys, values

Completed = Callable[..., list[str]]


@pytest.fixture
def completed() -> Completed:
    """What a shell is offered for the last of some words, as its script asks for it."""
    completion_init()

    def of(*words: str, shell: str = "bash") -> list[str]:
        line = " ".join(("mlx-peft", *words))
        asked = {
            "bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(words))},
            "zsh": {"_TYPER_COMPLETE_ARGS": line},
            "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
        }[shell]
        environment = {"_MLX_PEFT_COMPLETE": f"complete_{shell}", **asked}
        output = CliRunner().invoke(app, [], prog_name="mlx-peft", env=environment).stdout
        lines = output.removeprefix("_arguments '*: :((").removesuffix("))'\n").splitlines()
        return [line.partition("\t")[0].partition('":"')[0].strip('"') for line in lines]

    return of


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["tr"], "train"),
        (["data", "ch"], "check"),
        (["train", "--res"], "--resume"),
        (["train", "quick"], "quickstart"),
        (["cat", "vit-small-lora-cifar1"], "vit-small-lora-cifar100"),
        (["sweep", "quick"], "quickstart-methods"),
        (["parity", "--model", "vit_small_patch14_d"], "vit_small_patch14_dinov2"),
        (["predict", "--model", "vit_small_patch14_dinov2.l"], "vit_small_patch14_dinov2.lvd142m"),
        (["parity", "--method", "ada"], "adalora"),
        (["data", "check", "cifar"], "cifar100"),
        (["train", "quickstart", "method.ra"], "method.rank="),
        (["train", "quickstart", "seed=1", "method.name=adal"], "method.name=adalora"),
        (["train", "quickstart", "train.optimizer.name=s"], "train.optimizer.name=sgd"),
        (["train", "quickstart", "method.dora=t"], "method.dora=true"),
        (["ls", "mod"], "models"),
        (["eval", "--split", "te"], "test"),
    ],
)
def test_a_word_is_completed(completed: Completed, words: list[str], offered: str) -> None:
    assert offered in completed(*words)


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_offered_the_same(completed: Completed, shell: str) -> None:
    for words in (["tr"], ["train", "--res"], ["train", "quick"], ["train", "quickstart", "method.name=adal"]):
        assert completed(*words, shell=shell) == completed(*words)


def test_bash_has_the_equals_sign_as_a_word_of_its_own(completed: Completed) -> None:
    assert completed("train", "quickstart", "method.name", "=", "ad") == ["adalora", "adaptformer", "adapter_plus"]
    assert "adalora" in completed("train", "quickstart", "method.name", "=")


def test_keys_and_values_are_those_of_an_experiment() -> None:
    assert {"method.rank", "model.weights", "train.optimizer.lr", "data.augment.randaugment.ops"} <= keys().keys()
    assert values("train.schedule.name", "") == ["cosine", "linear", "constant"]
    assert values("method.dora", "") == ["true", "false"]
    assert values("train.epochs", "") == values("nothing", "") == []


@pytest.mark.parametrize("program", ["mlx-peft", "torch-ref"])
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_is_of_the_program_that_prints_it(program: str, shell: str) -> None:
    done = CliRunner().invoke(app, ["complete", shell], prog_name=program)
    variable = f"_{program.replace('-', '_').upper()}_COMPLETE"
    assert done.exit_code == 0
    assert f"{variable}=complete_{shell}" in done.stdout and f" {program}" in done.stdout


def test_a_bash_that_has_read_the_script_completes(tmp_path: Path) -> None:
    program = tmp_path / "mlx-peft"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m mlx_peft "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    script = (
        'eval "$(mlx-peft complete bash)"; COMP_WORDS=(mlx-peft train quick); COMP_CWORD=2;'
        '_mlx_peft_completion mlx-peft; echo "${COMPREPLY[@]}"'
    )
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "quickstart" in done.stdout.split()
