"""The picture of the rooms, drawn for the site from the words that are in docs/architecture.md.

There it is a flowchart of Mermaid, which GitHub draws. A site would have a script from elsewhere do that in the
reader's browser; here it becomes an SVG in the page, whose colours are the theme's. What is read is the part of
Mermaid's language that the page uses: subgraphs of rooms, each with a name and a sentence, and arrows.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape

FENCE = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ROOM = re.compile(r'(\w+)\["<b>(.+?)</b><br>(.+)"\]')

WIDE, MARGIN, EDGE = 640, 48, 12
"""Pixels: the column of boxes, the room beside it for long arrows, and a band's edge."""
HIGH, GAP, TITLE = 44, 18, 26
"""Of a box, between two boxes, and for the words above a band's first box."""


@dataclass
class Chart:
    """What a flowchart says: bands of rooms with their words, and arrows (from, to, what is written at it)."""

    bands: list[tuple[str, list[str]]] = field(default_factory=list)
    rooms: dict[str, tuple[str, str]] = field(default_factory=dict)
    arrows: list[tuple[str, str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Box:
    x: float
    y: float
    wide: float

    @property
    def middle(self) -> float:
        return self.x + self.wide / 2


def drawn(markdown: str) -> str:
    """A page's text with each flowchart as a picture."""
    return FENCE.sub(lambda found: picture(read(found[1])), markdown)


def read(text: str) -> Chart:
    """Raises ValueError for a line that is not of the part that is known."""
    chart = Chart()
    for line in map(str.strip, text.strip().splitlines()):
        if line in ("flowchart TB", "end", ""):
            continue
        if found := re.fullmatch(r'subgraph \w+\["(.+)"\]', line):
            chart.bands.append((found[1], []))
        elif found := ROOM.fullmatch(line):
            chart.rooms[found[1]] = (found[2], found[3])
            chart.bands[-1][1].append(found[1])
        elif "->" in line:
            chart.arrows += _arrows(line)
        else:
            raise ValueError(f"a flowchart has a line that is not drawn here: {line}")
    return chart


def _arrows(line: str) -> Iterator[tuple[str, str, str]]:
    """``a --> b --> c & d`` and ``a -. "words" .-> b``."""
    parts = re.split(r' (-->|-\. "[^"]*" \.->) ', line)
    for one, arrow, other in zip(parts[::2], parts[1::2], parts[2::2], strict=False):
        words = re.findall(r'"(.*)"', arrow)
        for start, end in itertools.product(one.split(" & "), other.split(" & ")):
            yield start, end, words[0] if words else ""


def placed(chart: Chart) -> tuple[dict[str, Box], list[tuple[str, float, float]], float]:
    """Each room's box, each band's title with its top and its height, and the height of all.

    A room stands below all that lead to it; in a row are those of one band that are equally far down.
    """
    floor = dict.fromkeys(chart.rooms, 0)
    for _ in chart.rooms:
        for start, end, _words in chart.arrows:
            floor[end] = max(floor[end], floor[start] + 1)
    boxes, bands, y = {}, [], 0.0
    for title, rooms in sorted(chart.bands, key=lambda band: min(floor[name] for name in band[1])):
        top, y = y, y + TITLE
        for _, row in itertools.groupby(sorted(rooms, key=floor.__getitem__), floor.__getitem__):
            names = [*row]
            wide = (WIDE - GAP * (len(names) - 1)) / len(names)
            boxes |= {name: Box(MARGIN + at * (wide + GAP), y, wide) for at, name in enumerate(names)}
            y += HIGH + GAP
        bands.append((title, top, y - GAP + EDGE - top))
        y += EDGE
    return boxes, bands, y - GAP


def picture(chart: Chart) -> str:
    """An SVG, in a frame that scrolls where a screen is narrow. It is read out as a list of rooms."""
    boxes, bands, height = placed(chart)
    said = "; ".join(f"{name}: {what}" for name, what in chart.rooms.values())
    lines = [
        '<div class="rooms" tabindex="0" role="group" aria-label="The rooms">',
        f'<svg viewBox="0 0 {WIDE + 2 * MARGIN} {height + EDGE:g}" role="img" aria-label="{escape(said)}">',
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z"/></marker></defs>',
    ]
    for _, top, high in bands:
        place = f'x="{MARGIN - EDGE}" y="{top:g}" width="{WIDE + 2 * EDGE}" height="{high:g}"'
        lines.append(f'<rect class="band" {place} rx="6"/>')
    for start, end, words in chart.arrows:
        lines.append(f'<path class="arrow{" named" if words else ""}" d="{_line(boxes[start], boxes[end])}"/>')
        if words:
            beside = min(boxes[start], boxes[end], key=lambda box: box.wide).middle + 8
            lines.append(f'<text class="said" x="{beside:g}" y="{boxes[start].y + HIGH + 16:g}">{escape(words)}</text>')
    lines += [f'<text class="title" x="{MARGIN}" y="{top + 17:g}">{escape(title)}</text>' for title, top, _ in bands]
    for name, (title, what) in chart.rooms.items():
        box = boxes[name]
        lines.append(
            f'<rect class="room" x="{box.x:g}" y="{box.y:g}" width="{box.wide:g}" height="{HIGH}" rx="4"/>'
            f'<text class="name" x="{box.middle:g}" y="{box.y + 18:g}">{escape(title)}</text>'
            f'<text class="what" x="{box.middle:g}" y="{box.y + 35:g}">{escape(what)}</text>'
        )
    return "\n".join([*lines, "</svg>", "</div>"])


def _line(start: Box, end: Box) -> str:
    """Straight to the next row; beside the column to one further down."""
    foot, head = start.y + HIGH, end.y - 2
    if head - foot <= GAP + TITLE + EDGE:
        narrow = min(start, end, key=lambda box: box.wide)
        return f"M{narrow.middle:g} {foot:g}V{head:g}"
    left = start.x + end.x + start.wide + end.wide < 2 * (MARGIN + WIDE)
    side = MARGIN - 34 if left else MARGIN + WIDE + 34
    edges = [box.x if left else box.x + box.wide for box in (start, end)]
    return f"M{edges[0]:g} {start.y + HIGH / 2:g}H{side}V{end.y + HIGH / 2:g}H{edges[1] + (-2 if left else 2):g}"
