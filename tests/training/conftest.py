"""A run to which nothing happens, and a folder for one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from training.resuming import outcome

from mlx_peft.training.run import RunFolder
from mlx_peft.training.train import train


@pytest.fixture
def whole(engine: SimpleNamespace, tmp_path: Path) -> dict[str, Any]:
    """The end of the run when nothing happens to it."""
    train(engine.experiment(), tmp_path / "whole")
    return outcome(tmp_path / "whole")


@pytest.fixture
def folder(engine: SimpleNamespace) -> RunFolder:
    engine.out.mkdir()
    return RunFolder(engine.out)
