"""Regular expressions that come with a file or from the hub, and so from a stranger.

None is run by Python's ``re``, which tries one way after the other: ``(a+)+$`` keeps it busy for ever. RE2 (Google's,
https://github.com/google/re2) takes a time that grows with the text alone. It knows no backreferences and no lookahead,
for which there is no such engine.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable

import re2

LONGEST = 1000
"""An expression has at most so many characters; PEFT's own for a list of blocks has some 200."""

ALTOGETHER = 10_000
"""All expressions in one place have at most so many characters: one for each of 400 layers by its whole name."""

UNKNOWN = ("invalid perl operator", "invalid escape sequence")
"""RE2 says this of lookarounds and of backreferences."""

MEMORY = 2**17
"""RE2 may use so many bytes for an expression: repetitions of repetitions, which need more, are refused."""


class UnknownError(ValueError):
    """An expression with what RE2 does not have and Python may: ``^(?!.*head).*qkv``."""


@functools.lru_cache(maxsize=2**16)
def is_whole(pattern: str, name: str) -> bool:
    """Whether an expression fits all of a name. Raises ValueError where it is none."""
    return _compiled(pattern).fullmatch(name) is not None


def first_at_end(patterns: Iterable[str], path: str) -> str | None:
    """The first expression that fits a path or, after a dot, its end; None where none does.

    It is PEFT's rule for ``rank_pattern``: ``qkv`` fits ``blocks.9.attn.qkv``, and ``kv`` does not. Raises ValueError
    where one is no expression.
    """
    return next((one for one in patterns if is_whole(rf"(?:.*\.)?(?:{one})", path)), None)


def check(patterns: Collection[str]) -> None:
    """Raises ValueError, with the reason, where there are too many expressions, or one cannot be used."""
    if (total := sum(len(pattern) for pattern in patterns)) > ALTOGETHER:
        raise ValueError(f"patterns of {total:,} characters together; at most {ALTOGETHER:,} are read")
    for pattern in patterns:
        _compiled(pattern)


@functools.lru_cache(maxsize=2**10)
def _compiled(pattern: str) -> re2._Regexp:
    """The expression, or a ValueError. What RE2 makes of it is kept: a pattern is tried on every layer."""
    if len(pattern) > LONGEST:
        raise ValueError(f"a pattern of {len(pattern):,} characters; at most {LONGEST:,} are read")
    options = re2.Options()
    options.max_mem, options.log_errors = MEMORY, False
    try:
        return re2.compile(pattern, options)
    except (re2.error, ValueError) as error:
        kind = UnknownError if (reason := _reason(error)).startswith(UNKNOWN) else ValueError
        raise kind(f"{pattern!r} is no regular expression that can be used here: {reason}") from None


def _reason(error: Exception) -> str:
    """RE2 gives bytes."""
    [reason, *_] = error.args or ("",)
    return reason.decode(errors="replace") if isinstance(reason, bytes) else str(error)
