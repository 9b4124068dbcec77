"""What is shipped to be run: recipes, which are experiments by name, and suites of them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mlx_peft.config import files, yaml_io
from mlx_peft.core.bounds import must_be_usable
from mlx_peft.core.errors import Command, UserError, shown, suggest
from mlx_peft.core.packaged import packaged

Kind = Literal["recipe", "suite"]
FOLDERS: dict[Kind, Literal["configs", "suites"]] = {"recipe": "configs", "suite": "suites"}


def names(kind: Kind = "recipe") -> list[str]:
    """Every recipe, or every suite, in alphabetical order."""
    return sorted(path.stem for path in packaged(FOLDERS[kind]).glob("*.yaml"))


def find(name: str, kind: Kind = "recipe") -> Path:
    """The file of a recipe or a suite. Raises UserError with the nearest names where there is none."""
    if name not in names(kind):
        raise UserError(
            f"there is no {kind} {shown(name)}{suggest(name, names(kind))}", command=Command("see", ("ls", f"{kind}s"))
        )
    return packaged(FOLDERS[kind]) / f"{name}.yaml"


def locate(config: str, kind: Kind = "recipe", *, beside: Path = Path()) -> Path:
    """What CONFIG or SUITE on a command line means: a file that exists, or else one that is shipped.

    ``beside`` is where a relative path starts. Raises UserError if it is neither.
    """
    path = beside / config
    must_be_usable(path)
    if path.exists() and not path.is_dir():
        return path
    if path.suffix in (".yaml", ".yml") or Path(config).name != config:
        raise UserError(f"{path}: no such file")
    return find(config, kind)


def folder_of(config: str) -> Path | None:
    """The folder of CONFIG's or SUITE's file, to which its paths may be relative; None of what is shipped."""
    path = Path(config)
    return path.parent if path.is_file() else None


def description(name: str, kind: Kind = "recipe") -> str:
    """The comment that a recipe or a suite begins with."""
    return find(name, kind).read_text("utf-8").partition("\n")[0].removeprefix("#").strip()


def text(name: str) -> str:
    """A recipe as one file that stands alone: its description, and what its parts add up to. A suite as it is."""
    if name in names("suite"):
        return find(name, "suite").read_text("utf-8")
    return f"# {description(name)}\n{yaml_io.write(files.compose(find(name)).values)}"
