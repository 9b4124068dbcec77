"""JSON as every reader of it takes it: the one writer."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from mlx_peft.core.text import UNSEEN


def to_json(value: Any, *, indent: int | None = 2, ascii: bool = False) -> str:
    r"""The value as JSON that can be encoded as UTF-8, without a newline at its end.

    A file's name that is not UTF-8 comes back as it was: its bytes are escapes (``\udcff``), which Python's reader
    turns into the name that ``open`` takes. What a terminal would obey is escaped too; other letters stay as they are,
    unless ``ascii`` is true.

    Args:
        indent: spaces of each level; None: everything on one line.

    Raises:
        ValueError: for NaN and the infinities, which JSON does not have.
        TypeError: for what is no plain value.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=ascii, allow_nan=False)
    return UNSEEN.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    """Inside texts the encoder leaves no newline: those that there are lay out the document."""
    return match[0] if match[0] == "\n" else json.dumps(match[0])[1:-1]


def canonical(value: Any) -> str:
    """The value on one line, its keys sorted, in ASCII: equal values have equal bytes, which can be hashed."""
    return json.dumps(value, sort_keys=True, allow_nan=False)


def from_json(text: str | bytes) -> Any:
    """The value of a text in which no object has a key twice: of two, readers take one or the other.

    Raises:
        ValueError: for a key that is there twice, and where the text is no JSON.
        RecursionError: where it is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_without_repeats)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)  # strangers send a million keys
        raise ValueError(f"the key {next(key for key in counts if counts[key] > 1)!r:.100} is there twice")
    return found
