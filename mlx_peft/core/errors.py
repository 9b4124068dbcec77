"""The one exception that is a person's to mend: a command prints its text alone and exits with status 2."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

LONGEST_NAME = 200
"""A name that somebody thought of has at most so many characters: a longer text is no misspelling of one."""

MOST_NAMES = 10_000
"""A wrong name is compared with at most so many right ones."""


@dataclass(frozen=True)
class Command:
    """A command that helps, without the spelling of a command line, which only ``mlx_peft.cli`` knows.

    Attributes:
        purpose: what it is good for, as the head of a line: ``to go on``, ``see``.
        words: its name, and what stands behind it: ``("train", "runs/a/config.yaml")``.
        options: by the names of its function's arguments; True for one without a value: ``{"resume": True}``.
    """

    purpose: str
    words: Sequence[str]
    options: Mapping[str, str | bool] = field(default_factory=dict)


class UserError(Exception):
    """Something the user wrote or has on disk is wrong. The text says what, where, and what would be right.

    The text names no option of a command line: a command shows its own options beside it.

    Attributes:
        arguments: what would mend it, by the names of a function's arguments: ``("model", "weights")``.
        command: the command that says more, or goes on from here.
    """

    def __init__(self, text: str, *, arguments: Sequence[str] = (), command: Command | None = None) -> None:
        super().__init__(text)
        self.arguments = arguments
        self.command = command


@contextmanager
def told_of(subject: object) -> Iterator[None]:
    """A UserError of the block is about the subject, which stands at the head of its text."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{subject}: {error}", arguments=error.arguments, command=error.command) from error


def suggest(wrong: str, known: Iterable[str], count: int = 3) -> str:
    """The nearest known names to a wrong one, as the tail of a message: ``"; did you mean 'rank'?"``, or nothing.

    Comparing takes the product of the lengths, so that neither a long text nor a long list is compared at all.
    """
    by_lower = {name.lower(): name for name in known if len(name) <= LONGEST_NAME}
    if len(wrong) > LONGEST_NAME or len(by_lower) > MOST_NAMES:
        return ""
    names = [by_lower[near] for near in difflib.get_close_matches(wrong.lower(), by_lower, n=count, cutoff=0.6)]
    return f"; did you mean {' or '.join(repr(name) for name in names)}?" if names else ""


def shown(value: Any, limit: int = 60) -> str:
    """A value for a message: text in quotes, with what is not printable escaped, and never longer than ``limit``."""
    # With its quotes a text of ``limit`` characters is too long already, so that the rest need not be looked at.
    return shortened(repr(value[:limit]) if isinstance(value, str) else json.dumps(value, default=str), limit)


def shortened(text: str, limit: int) -> str:
    """The text, or as much of it as leaves room for three dots."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
