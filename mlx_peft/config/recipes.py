"""The recipes that are shipped: experiments by name."""

from __future__ import annotations

from pathlib import Path

from mlx_peft.config import files, yaml_io
from mlx_peft.config.errors import UserError, suggest
from mlx_peft.config.packaged import packaged


def names() -> list[str]:
    """Every recipe, in alphabetical order."""
    return sorted(path.stem for path in packaged("configs").glob("*.yaml"))


def find(name: str) -> Path:
    """The file of a recipe. Raises UserError with the nearest names where there is none."""
    if name not in names():
        raise UserError(f"no recipe {name!r}{suggest(name, names())}; see: mlx-peft ls recipes")
    return packaged("configs") / f"{name}.yaml"


def locate(config: str) -> Path:
    """What CONFIG on a command line means: a file that exists, or else a recipe. Raises UserError if it is neither."""
    path = Path(config)
    if path.exists() and not path.is_dir():
        return path
    if path.suffix in (".yaml", ".yml") or path.name != config:
        raise UserError(f"{config}: no such file")
    return find(config)


def description(name: str) -> str:
    """The comment that a recipe begins with."""
    return find(name).read_text("utf-8").partition("\n")[0].removeprefix("#").strip()


def text(name: str) -> str:
    """A recipe as one file that stands alone: its description, and what its parts add up to."""
    return f"# {description(name)}\n{yaml_io.write(files.compose(find(name)).values)}"
