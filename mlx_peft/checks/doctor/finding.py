"""What is found of a machine and of what is installed on it, and what to do about it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Level = Literal["fine", "warning", "fault"]
"""A fault keeps something from working; a warning is of what works slowly, or of a part that is not there."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: in a word.
        said: what was found.
        remedy: what to do about it; empty where it is fine.
    """

    what: str
    level: Level
    said: str
    remedy: str = ""


def fine(what: str, said: str) -> Finding:
    """What is as it should be."""
    return Finding(what, "fine", said)


def warning(what: str, said: str, remedy: str) -> Finding:
    """What works, and could work better."""
    return Finding(what, "warning", said, remedy)


def fault(what: str, said: str, remedy: str) -> Finding:
    """What keeps something from working."""
    return Finding(what, "fault", said, remedy)


def homely(path: Path | str) -> str:
    """A path without the name of whose home it lies in."""
    text = os.path.abspath(path)
    home = os.path.expanduser("~")
    return f"~{text[len(home) :]}" if home != "/" and (text == home or text.startswith(home + os.sep)) else text
