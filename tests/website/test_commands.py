"""The page of the commands has each of them, with all that its help has."""

from __future__ import annotations

import re

import commands
import pytest
from typer.testing import CliRunner

from mlx_peft.cli.app import app

PAGE = commands.page()
SECTIONS = dict(re.findall(r"^## mlx-peft ?([\w ]*)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def test_every_command_is_there_and_groups_are_not() -> None:
    single = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert single <= {*SECTIONS}
    assert {"data check", "config validate", "bench", "bench tokens"} <= {*SECTIONS} and "data" not in SECTIONS


@pytest.mark.parametrize("name", SECTIONS)
def test_every_option_of_its_help_is_there(name: str) -> None:
    said = CliRunner().invoke(app, [*name.split(), "--help"], obj="mlx").output
    options = {*re.findall(r"^  (?:-\w, )?(--[\w-]+)", said, re.MULTILINE)} - {"--help"}
    rows = "\n".join(re.findall(r"^\| `(--[^`]*)`", SECTIONS[name], re.MULTILINE))
    assert options == {*re.findall(r"--[\w-]+", rows)} & options


def test_it_says_what_is_taken_where_an_option_is_left_out() -> None:
    assert re.search(r"\| `--rounds [^`]+` \| .*default: 9", SECTIONS["bench"])
    assert re.search(r"\| `--to FORMAT` \| .*\[required\]", SECTIONS["convert"])
    assert "mlx-peft convert [OPTIONS] SOURCE OUT" in SECTIONS["convert"]
    assert "mlx-peft train [OPTIONS] CONFIG [KEY=VALUE]..." in SECTIONS["train"]
