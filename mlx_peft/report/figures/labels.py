"""Names beside marks: each where no other name, mark or line is, with a thin line to a mark that is not near."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

Spot = tuple[float, float]
"""A place in a panel, in points of 1/72 inch from its lower left corner."""

REACHES = (5.0, 9.0, 14.0, 20.0, 27.0, 35.0, 44.0, 54.0, 66.0, 80.0, 96.0, 114.0, 136.0, 160.0)
"""Points from a mark to its name, the nearest that is free first."""
NEAR = 9.0
"""A name that is no further away needs no line."""
DIRECTIONS = 16
MARK, GAP = 3.5, 1.0
"""Half a mark's size, and what is kept free around a name."""


@dataclass(frozen=True)
class Box:
    """Where a name stands."""

    left: float
    bottom: float
    right: float
    top: float

    @property
    def middle(self) -> Spot:
        return (self.left + self.right) / 2, (self.bottom + self.top) / 2

    def nearest(self, spot: Spot) -> Spot:
        """The place of the box that is nearest to another."""
        return min(max(spot[0], self.left), self.right), min(max(spot[1], self.bottom), self.top)

    def meets(self, other: Box) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.bottom < other.top and other.bottom < self.top
        )

    def crosses(self, start: Spot, end: Spot) -> bool:
        """Whether a line goes through it (Liang and Barsky 1984)."""
        low, high = 0.0, 1.0
        for at, (least, most) in enumerate(((self.left, self.right), (self.bottom, self.top))):
            step, begin = end[at] - start[at], start[at]
            if step == 0:
                if not least < begin < most:
                    return False
                continue
            near, far = sorted(((least - begin) / step, (most - begin) / step))
            low, high = max(low, near), min(high, far)
        return low < high


@dataclass
class _Panel:
    """What stands in a panel so far."""

    width: float
    height: float
    marks: Sequence[Spot]
    bars: Sequence[tuple[Spot, Spot]]
    boxes: list[Box] = field(default_factory=list)
    lines: list[tuple[Spot, Spot]] = field(default_factory=list)

    def free(self, box: Box, mark: Spot) -> bool:
        """Whether a name may stand there: nothing is covered, and its line goes through no name and crosses none."""
        if box.left < 0 or box.bottom < 0 or box.right > self.width or box.top > self.height:
            return False
        around = Box(box.left - GAP, box.bottom - GAP, box.right + GAP, box.top + GAP)
        marks = (Box(x - MARK, y - MARK, x + MARK, y + MARK) for x, y in self.marks)
        if any(map(around.meets, self.boxes)) or any(map(around.meets, marks)):
            return False
        if any(around.crosses(*line) for line in self.lines):
            return False
        end = box.nearest(mark)
        return not any(one.crosses(mark, end) for one in self.boxes) and not any(
            _cross(mark, end, *line) for line in self.lines
        )

    def covered(self, box: Box) -> int:
        """How many bars it would cover."""
        return sum(box.crosses(*bar) for bar in self.bars)


def placed(
    marks: Sequence[Spot],
    names: Sequence[tuple[float, float]],
    size: tuple[float, float],
    order: Sequence[int],
    bars: Sequence[tuple[Spot, Spot]] = (),
) -> list[Box] | None:
    """Where the names of marks stand; None where there is no room for all of them.

    Args:
        names: the width and the height of each.
        size: of the panel.
        order: the numbers of the marks; the first has its choice of places.
        bars: lines that are covered where it cannot be helped.
    """
    panel = _Panel(*size, marks, bars)
    found: dict[int, Box] = {}
    for number in order:
        best: tuple[float, Box] | None = None
        for reach in REACHES:
            if best is not None and best[0] <= reach:  # no other is nearer, or covers less
                break
            for box in _around(marks[number], *names[number], reach):
                cost = reach + 6.0 * panel.covered(box)
                if (best is None or cost < best[0]) and panel.free(box, marks[number]):
                    best = cost, box
        if best is None:
            return None
        found[number] = best[1]
        panel.boxes.append(best[1])
        if (line := leader(best[1], marks[number])) is not None:
            panel.lines.append(line)
    return [found[number] for number in range(len(marks))]


def leader(box: Box, mark: Spot) -> tuple[Spot, Spot] | None:
    """The line from a mark to its name; None where the name is near."""
    end = box.nearest(mark)
    return None if math.dist(mark, end) <= NEAR else (mark, end)


def _around(mark: Spot, width: float, height: float, reach: float) -> list[Box]:
    """Boxes whose edge is so far from a mark, from its right side on, around."""
    found = []
    for number in range(DIRECTIONS):
        angle = 2 * math.pi * number / DIRECTIONS
        x, y = mark[0] + reach * math.cos(angle), mark[1] + reach * math.sin(angle)
        left = x - width * (1 - _sign(math.cos(angle))) / 2
        bottom = y - height * (1 - _sign(math.sin(angle))) / 2
        found.append(Box(left, bottom, left + width, bottom + height))
    return found


def _sign(value: float) -> int:
    return 0 if abs(value) < 1e-9 else 1 if value > 0 else -1


def _cross(a: Spot, b: Spot, c: Spot, d: Spot) -> bool:
    """Whether two lines cross."""

    def side(p: Spot, q: Spot, r: Spot) -> float:
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0
