"""Where the recipes, the shipped models and the suites lie: inside the installed package, or in a checkout."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

PACKAGE = Path(__file__).resolve().parents[1]


def packaged(kind: Literal["configs", "models", "suites"]) -> Path:
    """The folder of one kind of shipped data; a wheel holds a checkout's ``experiments/`` as ``mlx_peft/recipes/``."""
    installed = PACKAGE / "recipes" / kind
    return installed if installed.is_dir() else PACKAGE.parent / "experiments" / kind
