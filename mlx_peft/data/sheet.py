"""A contact sheet: drawn images of every class, and pairs that are, or seem, the same in two splits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from mlx_peft.core.errors import UserError
from mlx_peft.core.text import printable
from mlx_peft.data.check import Pair, Survey
from mlx_peft.tasks.task import NONE

TILE = 96
EACH = 8
"""So many images of a class are drawn."""

CLASSES = 48
"""Of more classes so many are drawn, evenly from the first to the last."""

PAIRS = 12
"""So many pairs of each kind are drawn."""

TITLE = 120
"""A line has at most so many characters."""

_MARGIN, _LINE = 4, 16
_INK, _GROUND, _BROKEN = "black", "white", "#c0392b"


def contact_sheet(survey: Survey) -> Image.Image:
    """A row of images for each class, spread evenly over its splits; then pairs across splits, earlier beside later."""
    task, shown = survey.dataset.task, _evenly(np.arange(len(survey.dataset.classes)), CLASSES).tolist()
    rows = [_row(survey, survey.dataset.classes[label], task.rows_of(survey.label, label)) for label in shown]
    if (none := task.rows_of_none(survey.label)) is not None:
        rows.append(_row(survey, NONE, none))
    for title, pairs in (("equal in two splits", survey.exact), ("nearly equal in two splits", survey.near)):
        rows += _pair_rows(survey, title, pairs)
    sheet = Image.new("RGB", (EACH * (TILE + _MARGIN) + _MARGIN, sum(row.height for row in rows)), _GROUND)
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def _row(survey: Survey, name: str, rows: np.ndarray) -> Image.Image:
    counts = np.bincount(survey.split[rows], minlength=len(survey.dataset.splits))
    listed = ", ".join(f"{count:,} {split}" for split, count in zip(survey.dataset.splits, counts, strict=True))
    shown = _evenly(rows, EACH).tolist()
    return _strip(f"{name}: {listed}", [_tile(survey, row) for row in shown])


def _pair_rows(survey: Survey, title: str, pairs: Sequence[Pair]) -> list[Image.Image]:
    strips = []
    for first in range(0, min(len(pairs), PAIRS), EACH // 2):
        drawn = pairs[first : min(first + EACH // 2, PAIRS)]
        tiles = [_tile(survey, row) for pair in drawn for row in (pair.earlier, pair.later)]
        places = "; ".join(f"{survey.place(pair.earlier)[0]}, {survey.place(pair.later)[0]}" for pair in drawn)
        names = [survey.named(row)["image"] for pair in drawn for row in (pair.earlier, pair.later)]
        strips.append(_strip(f"{title} ({len(pairs):,} in all): {places}", tiles, names))
    return strips


def _evenly(rows: np.ndarray, count: int) -> np.ndarray:
    if len(rows) <= count:
        return rows
    chosen: np.ndarray = rows[np.linspace(0, len(rows) - 1, count).round().astype(int)]
    return chosen


def _tile(survey: Survey, row: int) -> Image.Image:
    """An image fitted into a tile; a crossed one where it cannot be read."""
    name, place = survey.place(row)
    try:
        image = Image.fromarray(np.ascontiguousarray(survey.dataset.splits[name].images.read(place)))
    except UserError:
        crossed = Image.new("RGB", (TILE, TILE), _GROUND)
        draw = ImageDraw.Draw(crossed)
        for ends in ((0, 0, TILE - 1, TILE - 1), (0, TILE - 1, TILE - 1, 0)):
            draw.line(ends, _BROKEN, 2)
        return crossed
    return ImageOps.contain(image, (TILE, TILE))


def _strip(title: str, tiles: Sequence[Image.Image], names: Sequence[str] = ()) -> Image.Image:
    """A row of tiles under its title, and over their names where there are drawn."""
    below = _LINE + TILE + _MARGIN
    strip = Image.new("RGB", (EACH * (TILE + _MARGIN) + _MARGIN, below + (_LINE if names else _MARGIN)), _GROUND)
    draw = ImageDraw.Draw(strip)
    draw.text((_MARGIN, _MARGIN), printable(title)[:TITLE], _INK, _font())
    for place, tile in enumerate(tiles):
        strip.paste(tile, (_MARGIN + place * (TILE + _MARGIN), _LINE + _MARGIN))
    for place, name in enumerate(names):
        draw.text((_MARGIN + place * (TILE + _MARGIN), below), ending(printable(name), TILE), _INK, _font())
    return strip


def ending(name: str, width: int) -> str:
    """As much of a name's end as fits so many pixels: files of a folder differ there."""
    name = name.encode("utf-8", "replace").decode()  # of a file, it may be no text
    shown = name[-width:]
    while _font().getlength(shown) > width:
        shown = f"…{shown.removeprefix('…')[1:]}"
    return shown


@cache
def _font() -> ImageFont.FreeTypeFont:
    """Matplotlib's DejaVu Sans, which has most alphabets' letters: classes are called in many languages."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", 11)
