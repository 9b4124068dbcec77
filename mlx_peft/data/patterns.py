"""Images of a table by the identifiers in its cells: ``images/{id_code}.png``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from mlx_peft.core.errors import UserError, suggest
from mlx_peft.data.litter import files_below, is_litter
from mlx_peft.data.names import spelled
from mlx_peft.data.reading import SUFFIXES

FIELD = re.compile(r"\{([^{}]+)\}")
"""A column in a pattern."""


def fields(pattern: str | None, heading: Sequence[str], where: object) -> tuple[str, ...]:
    """The columns that a pattern names; none where it is a column's own name. Raises UserError where one is missing."""
    if pattern is None or pattern in heading:
        return ()
    named = {spelled(name): name for name in heading}
    found = FIELD.findall(pattern)
    for name in found:
        if spelled(name) not in named:
            raise UserError(
                f"data.columns.image: {pattern!r} names the column {name!r}, which {where} does not have"
                f"{suggest(name, heading)}"
            )
    return tuple(named[spelled(name)] for name in found)


def filled(pattern: str, cells: Sequence[str]) -> str:
    """The pattern with a cell in the place of each of its columns."""
    waiting = iter(cells)
    return FIELD.sub(lambda _: next(waiting), pattern)


class Folders:
    """The folders that a star in a pattern stands for: ``part_*/{image_id}.jpg``."""

    def __init__(self, root: Path, pattern: str) -> None:
        """Raises UserError where the star is not in the folder, or the folder leads out of the root."""
        folder, _, self._file = pattern.rpartition("/")
        self.pattern = pattern
        if "*" in self._file or FIELD.search(folder) or ".." in folder.split("/") or folder.startswith("/"):
            raise UserError(
                f"data.columns.image: {pattern!r}: a star stands for folders below {root}, with the columns behind them"
            )
        if any("**" in part and part != "**" for part in folder.split("/")):
            raise UserError(f"data.columns.image: {pattern!r} names no folders: ** is a whole name, as in a/**/b")
        self._root = root
        try:
            found = [path.relative_to(root) for path in root.glob(folder) if path.is_dir()]
        except (ValueError, OSError) as error:
            raise UserError(f"data.columns.image: {pattern!r} names no folders ({error})") from error
        self._folders = sorted(path.as_posix() for path in found if not any(map(is_litter, path.parts)))

    def path(self, cells: Sequence[str]) -> str:
        """Where the image of a row is; the pattern where it is in none. Raises UserError where it is in two."""
        file = filled(self._file, cells)
        found = [f"{folder}/{file}" for folder in self._folders if (self._root / folder / file).is_file()]
        if len(found) > 1:
            raise UserError(f"{self._root}: {found[0]} and {found[1]} are both called as data.columns.image says")
        return found[0] if found else f"{self.pattern.rpartition('/')[0]}/{file}"


def _beginning(names: Sequence[str]) -> str:
    """The letters that all of the names begin with."""
    first, last = min(names), max(names)
    same = next((place for place, letter in enumerate(first) if letter != last[place : place + 1]), len(first))
    return first[:same]


def advice(root: Path, missing: Sequence[str], column: str) -> str:
    """Where images are that a table lists and that are not where it says, as the tail of a message; "" where nowhere.

    missing: cells of the column.
    """
    there: dict[str, list[str]] = {}
    for path in files_below(root, SUFFIXES):
        there.setdefault(PurePosixPath(path).stem.lower(), []).append(path)
    patterns: dict[str, str] = {}
    for cell in missing:
        name = PurePosixPath(cell).name
        stem = name.rpartition(".")[0] if name.lower().endswith(SUFFIXES) else name
        for path in there.get(stem.lower(), ()):
            patterns.setdefault(path.replace(cell, f"{{{column}}}") if cell in path else "", path)
    if not patterns:
        return ""
    first = next(iter(patterns.values()))
    if "" in patterns:
        return f"; there is {first}"
    folders, files = zip(*(pattern.rpartition("/")[::2] for pattern in patterns), strict=True)
    if len(set(files)) > 1:
        return f"; there is {first}"
    folder = folders[0] if len(folders) == 1 else f"{_beginning(folders)}*"
    pattern = f"{folder}/{files[0]}" if folder else files[0]
    return f"; there is {first}: set data.columns.image: {pattern!r}"
