"""Only the commands name what a person types: below them a text speaks of arguments, and of no program.

``mlx_peft.cli.mistakes`` shows the options of the command that was run beside such a text.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
BELOW = sorted(
    path
    for package in ("mlx_peft", "torch_ref", "convert")
    for path in (ROOT / package).rglob("*.py")
    if "cli" not in path.relative_to(ROOT).parts
)

OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
COMMAND = re.compile(r"\b(mlx-peft|torch-ref) [a-z]+\b")


def typed(text: str) -> list[str]:
    """The options and commands in the texts of a module; docstrings are for whoever reads the code."""
    if not (OPTION.search(text) or COMMAND.search(text)):
        return []
    tree = ast.parse(text)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        match[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
        for match in (*OPTION.finditer(node.value), *COMMAND.finditer(node.value))
    ]


def test_no_text_below_the_commands_names_an_option_or_a_command():
    found = {str(path.relative_to(ROOT)): typed(path.read_text()) for path in BELOW}
    assert len(found) > 100 and {path: words for path, words in found.items() if words} == {}


def test_an_option_and_a_command_are_found():
    text = 'def f(out):\n    """As ``--out``."""\n    raise E(f"{out}: choose another --out, or run mlx-peft ls")\n'
    assert typed(text) == ["--out", "mlx-peft ls"]
