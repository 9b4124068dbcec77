"""The one exception that is a person's to mend: a command prints its text alone and exits with status 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user wrote or has on disk is wrong. The text says what, where, and what would be right."""


def suggest(wrong: str, known: Iterable[str], count: int = 3) -> str:
    """The nearest known names to a wrong one, as the tail of a message: ``"; did you mean 'rank'?"``, or nothing."""
    by_lower = {name.lower(): name for name in known}
    names = [by_lower[near] for near in difflib.get_close_matches(wrong.lower(), by_lower, n=count, cutoff=0.6)]
    return f"; did you mean {' or '.join(repr(name) for name in names)}?" if names else ""
