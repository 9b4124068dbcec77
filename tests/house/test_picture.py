"""The picture in docs/architecture.md draws the rooms of the import contract, and its arrows lead down as there."""

from __future__ import annotations

import itertools
import re
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with import-linter

ROOT = Path(__file__).parents[2]
ELSEWHERE = {"mlx": "mlx_peft.backend", "torch": "torch_ref", "convert": "convert"}
"""Rooms of the picture that are not called as their packages are."""


def floors() -> dict[str, int]:
    """The rooms of the import contract, the highest number on top."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return {room: -floor for floor, layer in enumerate(layers) for room in re.split(r" [|:] ", layer)}


@pytest.fixture(scope="module")
def picture() -> str:
    page = (ROOT / "docs" / "architecture.md").read_text()
    found = re.search(r"```mermaid\n(.*?)```", page, re.DOTALL)
    assert found is not None
    return found[1]


def drawn(picture: str) -> dict[str, str]:
    """The package of each room that is drawn, by its name in the picture."""
    names = re.findall(r'^ +(\w+)\["<b>', picture, re.MULTILINE)
    return {name: ELSEWHERE.get(name, f"mlx_peft.{name}") for name in names}


def arrows(picture: str) -> list[tuple[str, str]]:
    """From room to room, by their names in the picture: ``a --> b & c`` are two."""
    lines = [re.split(r" --> | -\..*?\.-> ", line.strip()) for line in picture.splitlines() if "->" in line]
    steps = [step for line in lines for step in itertools.pairwise(line)]
    return [(above, below) for one, other in steps for above in one.split(" & ") for below in other.split(" & ")]


def test_every_room_is_drawn_and_no_other(picture):
    assert sorted(drawn(picture).values()) == sorted(floors())


def test_every_arrow_leads_down(picture):
    rooms, floor = drawn(picture), floors()
    assert {room for arrow in arrows(picture) for room in arrow} == rooms.keys()
    assert [arrow for arrow in arrows(picture) if floor[rooms[arrow[0]]] <= floor[rooms[arrow[1]]]] == []
