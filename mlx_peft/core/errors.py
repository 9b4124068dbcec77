"""The one exception that is a person's to mend: a command prints its text alone and exits with status 2."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from typing import Any

LONGEST_NAME = 200
"""Characters of a name that somebody thought of: a longer text is no misspelling of one."""

MOST_NAMES = 10_000
"""That a wrong one is compared with."""


class UserError(Exception):
    """Something the user wrote or has on disk is wrong. The text says what, where, and what would be right."""


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
