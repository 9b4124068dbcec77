"""Documents with one value that nobody would write: what structured fuzzing puts into JSON, YAML and tables.

Bytes that are damaged are mostly no document at all, and refused by the parser. Here a document stays one: a number is
huge, negative, zero, not a number, a text or a list; a text is long, empty or a pattern; a key is gone, new or twice.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

RAW = "@raw "
"""Before what JSON's writer has no value for: it is written as it stands, without quotes."""

NUMBERS = (
    *(0, -1, 1, 2, 3, -(10**9), 10**9, 2**31, 2**32, 2**63, 2**64, -(2**63), 10**400),
    *(0.0, -0.5, 0.5, 1.5, 1e-300, 1e9, 1e38, 1e300, -1e300, float("nan"), float("inf"), float("-inf")),
    *(f"{RAW}1e400", f"{RAW}{'9' * 5000}", f"{RAW}-0", f"{RAW}1.0"),
)
TEXTS = (
    *("", " ", "x", "0", "-1", "nan", "1e400", "null", "true", "a" * 300, "a" * 100_000, "é" * 5000, "9" * 5000),
    *("\0", "a\0b", "\n", "\x1b[2J", "\u202e", "\ud800", "=1+1", "'; --", "%s%n", "{0}", "${HOME}", "~", "~nobody/x"),
    *(
        ".",
        "..",
        "/",
        "../../../etc/passwd",
        "/dev/zero",
        "/dev/stdin",
        "a/" * 3000,
        "http://localhost:1/x",
        "file:///x",
    ),
    *("(a+)+$", "(", "[", "*", ".*", r"(.*)*\1", "(?=a)", "a{1000000}", "(a|a)*b", "x" * 60 + "!"),
    *("vit_tiny_patch16_224", "package:quickstart", "timm", "none", "deit_tiny_distilled_patch16_224"),
)
OTHERS: tuple[Any, ...] = (
    *(None, True, False, [], {}, [[]], [None], {"": 0}, [0] * 1000, ["a"] * 1000, {"name": "lora"}, {"a": {"b": 1}}),
    f"{RAW}{'[' * 5000}{']' * 5000}",
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every value inside a document, by the keys that lead to it."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(value[key], (*path, key))


def pick(rng: np.random.Generator, values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


def instead(value: Any, rng: np.random.Generator) -> Any:
    """What stands in the place of a value: mostly something of its own kind."""
    kind = rng.random()
    if kind < 0.15:
        return copy.deepcopy(pick(rng, OTHERS))
    if isinstance(value, dict | list) and kind < 0.5 and value:
        if isinstance(value, list):
            return pick(rng, (value * 2, value[:-1], value[::-1], value * 1000, [*value, None], [*value, *OTHERS[:5]]))
        key = pick(rng, sorted(value))
        return pick(rng, ({k: v for k, v in value.items() if k != key}, {**value, f"{key}x": 1}, {**value, "": None}))
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return pick(rng, NUMBERS if numeric == (kind < 0.85) else TEXTS)


def changed(document: Any, rng: np.random.Generator) -> Any:
    """A copy of a document with one value in another's place, sometimes two."""
    whole = {"": copy.deepcopy(document)}
    for _ in range(1 + int(rng.random() < 0.2)):
        path = pick(rng, list(places(whole)))
        node: Any = whole
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = instead(node[path[-1]], rng)
    return whole[""]


def text(document: Any, rng: np.random.Generator | None = None) -> str:
    """A document as JSON, which is YAML too; with a generator, now and then with a key that stands there twice."""
    written = json.dumps(document)
    while (start := written.find(f'"{RAW}')) >= 0:
        end = written.index('"', start + 1)
        written = written[:start] + written[start + 1 + len(RAW) : end] + written[end + 1 :]
    if rng is not None and isinstance(document, dict) and document and rng.random() < 0.05:
        key = json.dumps(pick(rng, sorted(document)))
        written = f"{{{key}: {json.dumps(pick(rng, (0, '', None, [])))}, {written[1:]}"
    return written
