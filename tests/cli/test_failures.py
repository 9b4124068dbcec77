"""What a command answers where something is wrong with what it was given, or with the machine."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mlx_peft.cli.app import app
from mlx_peft.core.errors import UserError


def answer(*arguments: str) -> str:
    """What is said on standard error. Nothing is said elsewhere, and nothing but the message."""
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert not done.stdout
    assert "Traceback" not in done.stderr
    assert isinstance(done.exception, SystemExit)
    return done.stderr


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (UserError("a\x1b[2Jb\n  \u202ec"), "error: a\\x1b[2Jb\n  \\u202ec\n"),
        (UserError("x" * 10**6 + "\nthe end"), f"error: {'x' * 3997}...\nthe end\n"),
        (MemoryError(), "error: this needs more memory than there is\n"),
        (MemoryError("of 358 GiB"), "error: this needs more memory than there is: of 358 GiB\n"),
        (OSError(errno.EACCES, "Permission denied", "runs"), "error: runs: Permission denied\n"),
        (OSError("it is gone"), "error: it is gone\n"),
    ],
)
def test_one_message_and_no_traceback(monkeypatch: pytest.MonkeyPatch, raised: Exception, said: str) -> None:
    def wrong(*_: object) -> None:
        raise raised

    monkeypatch.setattr("mlx_peft.cli.config.read_experiment", wrong)
    assert answer("config", "show", "quickstart") == said


COMMANDS = {
    "config validate": "NAME",
    "train": "NAME",
    "sweep": "NAME",
    "predict": "NAME picture.png",
    "merge": "NAME out",
    "convert": "NAME out --to timm",
    "info": "NAME",
    "eval": "NAME",
    "report": "NAME",
    "cat": "NAME",
    "data check": "NAME",
}


@pytest.mark.parametrize("name", ["a" * 300, "a" * 300 + ".yaml", "a/" * 3000, "v" * 100_000])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_name_that_no_file_can_have_is_refused_by_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    said = answer(*command.split(), *(name if word == "NAME" else word for word in COMMANDS[command].split()))
    assert len(said) < 5000
    assert not list(tmp_path.iterdir())
