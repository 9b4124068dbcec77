"""The picture of the rooms on the site is that of docs/architecture.md, and can be read."""

from __future__ import annotations

import re
from itertools import combinations, pairwise
from xml.etree import ElementTree

import pytest
import rooms
from places import ROOT

TEXT = (ROOT / "docs" / "architecture.md").read_text()
FLOWCHART = rooms.FENCE.search(TEXT)[1]
CHART = rooms.read(FLOWCHART)
WIDEST = {"name": 9.0, "what": 6.6}
"""Pixels that a letter takes at most, on the average of a line, in the sizes of docs/assets/site.css."""


def test_every_room_and_every_arrow_is_read() -> None:
    assert len(CHART.rooms) == FLOWCHART.count("<b>") == sum(len(names) for _, names in CHART.bands) > 15
    assert {("mlx", "library", ""), ("library", "convert", ""), ("protocols", "torch", "by name")} <= {*CHART.arrows}
    assert {name for arrow in CHART.arrows for name in arrow[:2]} == {*CHART.rooms}


def test_every_arrow_leads_down_and_no_two_boxes_meet() -> None:
    boxes, bands, height = rooms.placed(CHART)
    assert all(boxes[start].y < boxes[end].y for start, end, _ in CHART.arrows)
    for one, other in combinations(boxes.values(), 2):
        assert abs(one.y - other.y) >= rooms.HIGH or one.x + one.wide < other.x or other.x + other.wide < one.x
    assert all(box.y + rooms.HIGH < height for box in boxes.values())
    assert all(top + high <= below for (_, top, high), (_, below, _) in pairwise(bands))


def test_the_picture_is_one_and_its_words_stay_in_their_boxes() -> None:
    svg = ElementTree.fromstring(rooms.picture(CHART))
    boxes, _, _ = rooms.placed(CHART)
    words = [
        (one.get("class"), float(one.get("x")), one.text) for one in svg.iter("text") if one.get("class") in WIDEST
    ]
    assert sorted(text for kind, _, text in words if kind == "name") == sorted(name for name, _ in CHART.rooms.values())
    wide = {box.middle: box.wide for box in boxes.values()}
    assert [text for kind, x, text in words if len(text) * WIDEST[kind] > wide[x]] == []
    arrows = [one for one in svg.iter("path") if str(one.get("class")).startswith("arrow")]
    assert len(arrows) == len(CHART.arrows)


def test_a_page_keeps_what_stands_around_it() -> None:
    page = rooms.drawn(TEXT)
    assert "```mermaid" not in page and page.count("<svg") == 1
    before, after = re.split(r"```mermaid\n.*?```", TEXT, maxsplit=1, flags=re.DOTALL)
    assert page.startswith(before) and page.endswith(after)


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="not drawn here: style cli fill:red"):
        rooms.read("flowchart TB\nstyle cli fill:red\n")
