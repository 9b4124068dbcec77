"""A mistake is answered in the words of the command and the program that were run."""

from __future__ import annotations

from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from mlx_peft.cli.app import app
from mlx_peft.cli.mistakes import Answering, AnsweringGroup
from mlx_peft.core.errors import Command, UserError


def answered(error: UserError, program: str = "mlx-peft") -> str:
    """What a program with a command ``try`` says where it raises the error."""
    program_of_one = typer.Typer(cls=AnsweringGroup)

    @program_of_one.command("try", cls=Answering)
    def attempt(
        place: Annotated[str, typer.Argument(metavar="RUN")] = "",
        image_size: Annotated[int, typer.Option(metavar="PIXELS")] = 1,
        again: Annotated[bool, typer.Option("--again")] = False,
    ) -> None:
        raise error

    program_of_one.command("other")(lambda: None)
    return str(CliRunner().invoke(program_of_one, ["try"], prog_name=program).exception)


def test_an_argument_is_named_by_the_option_that_sets_it():
    assert answered(UserError("a is wrong", arguments=("image_size",))) == "a is wrong (--image-size PIXELS)"
    assert answered(UserError("a is wrong", arguments=("place", "again"))) == "a is wrong (RUN, --again)"


def test_an_argument_that_the_command_does_not_have_is_left_out():
    assert answered(UserError("a is wrong", arguments=("weights",))) == "a is wrong"


def test_the_options_stand_on_a_line_of_their_own_below_a_list():
    assert answered(UserError("two things:\n  a\n  b", arguments=("again",))).splitlines()[-1] == "  options: --again"


@pytest.mark.parametrize("program", ["mlx-peft", "torch-ref"])
def test_a_command_is_one_of_the_program_that_was_run(program):
    again = Command("to go on", ("try", "my runs/a"), {"image_size": "8", "again": True})
    assert answered(UserError("it stopped", command=again), program) == (
        f"it stopped\n  to go on: {program} try 'my runs/a' --image-size 8 --again"
    )


def test_every_command_answers():
    """Also those of the groups: one that is registered without would name no option."""
    groups = [typer.main.get_command(app)]
    while groups:
        for command in groups.pop().commands.values():
            if hasattr(command, "commands"):
                groups.append(command)
                if not command.callback:
                    continue
            assert isinstance(command, (Answering, AnsweringGroup)), command.name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval", "a", "--split", "foo"], "--split: 'foo' is not one of 'train', 'val', 'test'"),
        (["complete", "foo"], "bash|zsh|fish: 'foo' is not one of 'bash', 'zsh', 'fish'"),
        (["predict", "a", "b", "--top", "0"], "--top should be at least 1, not '0'"),
        (["predict", "a", "b", "--top", "one"], "--top should be a whole number, not 'one'"),
        (["simulate", "a", "--percentile", "most"], "--percentile should be a number, not 'most'"),
    ],
)
def test_a_value_that_an_option_cannot_have_is_said_in_a_sentence(words, message):
    done = CliRunner().invoke(app, words, prog_name="mlx-peft")
    assert done.exit_code == 2 and done.stderr == f"error: {message}\n  see: mlx-peft {words[0]} --help\n"
