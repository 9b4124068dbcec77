"""A module is one idea, and a function one step: neither is longer than a person reads at once."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    path for folder in ("mlx_peft", "torch_ref", "convert", "tests") for path in (ROOT / folder).rglob("*.py")
)

LONGEST_MODULE = 300
LONGEST_FUNCTION = 60
REASON = "Long because"
"""A function that is longer has a sentence in its docstring that begins so."""


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Those of a module, at any depth. Only statements have statements in them: no expression is looked into."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        if isinstance(node, ast.stmt | ast.excepthandler | ast.match_case):
            yield from functions(node)


def too_long(text: str) -> list[str]:
    """The functions that are longer, in lines from ``def`` to their end, and do not say why."""
    return [
        f"{function.name}: {length} lines"
        for function in functions(ast.parse(text))
        if (length := (function.end_lineno or 0) - function.lineno + 1) > LONGEST_FUNCTION
        and REASON not in (ast.get_docstring(function) or "")
    ]


def test_no_module_and_no_function_is_longer_than_a_reading():
    found = {}
    for path in MODULES:
        text = path.read_text()
        lines = len(text.splitlines())
        if lines > LONGEST_FUNCTION and (longer := [f"{lines} lines"] * (lines > LONGEST_MODULE) + too_long(text)):
            found[str(path.relative_to(ROOT))] = longer
    assert found == {}


def test_a_long_function_is_found_unless_it_says_why():
    body = "    x = 1\n" * LONGEST_FUNCTION
    assert too_long(f"def f():\n{body}") == ["f: 61 lines"]
    around = ["class C:", "if x:", "try: y", "except E:", "match x:", "case 1:", "with z:", "async def f():"]
    places = [0, 1, 2, 2, 3, 4, 5, 6]
    inside = "".join(f"{' ' * place}{line}\n" for place, line in zip(places, around, strict=True))
    assert too_long(f"{inside}{body.replace('    ', ' ' * 7)}") == ["f: 61 lines"]
    assert too_long(f'def f():\n    """A table. {REASON} it lists what there is."""\n{body}') == []
