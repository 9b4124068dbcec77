"""The page of the commands, made of the program itself: what ``--help`` says, as headings and tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer
from typer.main import get_command

from mlx_peft.cli.app import app


def page() -> str:
    """The page behind its first words, in Markdown."""
    lines: list[str] = []
    for path, command in _commands("mlx-peft", get_command(app)):
        lines += _section(path, command)
    return "\n".join(lines)


def _commands(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    """The commands that do something, with the words that call each; a group is one where it does something alone."""
    children = getattr(command, "commands", {})
    if not children or command.invoke_without_command:
        yield path, command
    for name, child in children.items():
        yield from _commands(f"{path} {name}", child)


def _section(path: str, command: Any) -> Iterator[str]:
    context = typer.Context(command, info_name=path)
    usage = [piece.strip("{}") for piece in command.collect_usage_pieces(context)]
    yield f"## {path}\n"
    yield f"```text\n{' '.join([path, *usage])}\n```\n"
    yield f"{_plain(command.help or '')}\n"
    for kind in ("argument", "option"):
        records = [one.get_help_record(context) for one in command.params if one.param_type_name == kind]
        if rows := [record for record in records if record is not None]:
            yield f"| {kind} | what it is for |\n|---|---|"
            yield from (f"| `{name}` | {_cell(_plain(said))} |" for name, said in rows)
            yield ""


def _plain(text: str) -> str:
    """A help's lines as paragraphs, with nothing in it that Markdown would take for a tag."""
    paragraphs = [re.sub(r"\s+", " ", part).strip() for part in text.split("\n\n")]
    return "\n\n".join(paragraphs).replace("<", "&lt;")


def _cell(text: str) -> str:
    return text.replace("\n\n", " ").replace("|", "\\|")
