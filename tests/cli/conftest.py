"""Commands run in this process, with standard output and standard error apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mlx_peft.cli.app import app

Command = Callable[..., Any]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command line in an empty folder; ``obj`` is the default backend, as the console scripts give it."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, obj: str = "mlx") -> Any:
        return CliRunner().invoke(app, list(map(str, arguments)), obj=obj, prog_name="mlx-peft")

    return run
