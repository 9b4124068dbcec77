"""Each message that the page on troubleshooting quotes is one that the program has."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
MESSAGES = re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)


@cache
def texts() -> str:
    """Every text of the program; what differs in one is a space between dots, as the page has it."""
    found = []
    for package in ("mlx_peft", "torch_ref", "convert"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "..." for part in node.values]
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return "\n".join(found)


def is_said(message: str) -> bool:
    pieces = [re.escape(piece) for piece in message.split("...")]
    return re.search("[^\n]*".join(pieces), texts()) is not None


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_the_programs(message: str) -> None:
    assert is_said(message)


def test_there_are_some_and_another_is_not_found() -> None:
    assert len(MESSAGES) >= 20 and not is_said("... already holds an unfinished sandwich")
