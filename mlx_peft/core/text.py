"""Text from files and folders (names of classes, of images, of runs) where it is shown: it is read, never obeyed.

A terminal obeys escape sequences, Markdown its signs, a spreadsheet what begins like a formula. What is stored, hashed
or compared is the text itself; only what is shown goes through here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # controls: ESC, newline, and the eight-bit ones that some terminals obey
    "\u00ad\u061c\u180e\u200b\u200e\u200f\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"  # have no width
    "\u2028\u2029\u202a-\u202e"  # end a line, or turn the direction of all that follows
    "\ud800-\udfff]"  # not text: half a pair, or a byte of a file's name that is not UTF-8
)
"""A sign that is not seen, or moves what is. Joiners (U+200C, U+200D) are none: Persian and emoji are written so."""

_SHORT = {"\t": r"\t", "\n": r"\n", "\r": r"\r"}
_MARKS = re.compile(r"[|`*\[\]~]|<(?=[a-zA-Z/!?])|\\(?=[!-/:-@\[-`{-~])|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])")
_FORMULA = re.compile(r"[=+\-@\t\r＝＋－＠]")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def printable(text: str) -> str:
    r"""The text with all that is not seen, or moves what is, written out as Python would: ``\x1b``, ``\n``, ``\u202e``.

    A byte of a file's name that is not UTF-8 is ``\xff``. All other letters, marks and emoji stay.
    """
    return UNSEEN.sub(_written_out, text)


def printable_lines(text: str) -> str:
    """As ``printable``, for a text of several lines: newlines stay."""
    return "\n".join(map(printable, text.split("\n")))


def _written_out(match: re.Match[str]) -> str:
    sign = match[0]
    code = ord(sign)
    if 0xDC80 <= code <= 0xDCFF:  # as os.fsdecode keeps a byte
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return _SHORT.get(sign) or f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def markdown(text: str) -> str:
    """``printable``, with the signs that Markdown obeys, also inside a table, made to stand for themselves."""
    return _MARKS.sub(r"\\\g<0>", printable(text))


def csv_cell(text: str) -> str:
    """``printable``, behind an apostrophe where a spreadsheet would take it for a formula. Numbers stay numbers."""
    formula = _FORMULA.match(text) and not _NUMBER.fullmatch(text)
    return f"'{printable(text)}" if formula else printable(text)


def counted(number: int, one: str, several: str = "") -> str:
    """``1 epoch``, ``3 epochs``, ``1,200 classes``: a number, and what is counted in the form that goes with it.

    Args:
        one: the word for one; the last word is what changes.
        several: its plural where it takes more than an ending.
    """
    ending = "es" if one.endswith(("s", "x", "tch", "sh")) else "s"
    return f"{number:,} {one if number == 1 else several or one + ending}"


def named(count: int, names: Sequence[str]) -> str:
    """``3 classes (cat, dog, ...)``: so many, and the first of their names where they are known."""
    first = ", ".join([*map(printable, names[:3]), *(["..."] if len(names) > 3 else [])])
    return f"{counted(count, 'class')} ({first})" if names else counted(count, "class")
