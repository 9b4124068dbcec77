"""What was changed, as a part of a folder's name: short, the same for the same changes, and safe in any file system."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

LONGEST = 100
"""A name of changes has at most so many bytes: of a longer one the tail is a digest in its place."""


def short(key: str, keys: Iterable[str]) -> str:
    """The last name of a key, or the whole of it where another key ends alike."""
    last = key.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in keys) == 1 else key


def label(value: Any) -> str:
    """A value as a part of a folder's name."""
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        value = value["name"]
    if isinstance(value, list):
        return ",".join(map(label, value))
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.") or "none"


def labels(values: Sequence[Any]) -> list[str]:
    """Each of several values; sections of one name also say the options in which they differ: ``tome-r=2``."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for value in values:
        if isinstance(value, dict):
            groups.setdefault(label(value), []).append(value)
    differing = {name: _differing(group) for name, group in groups.items()}
    return [
        "-".join([label(value), *(f"{key}={label(value[key])}" for key in differing[label(value)] if key in value)])
        if isinstance(value, dict)
        else label(value)
        for value in values
    ]


def _differing(group: Sequence[dict[str, Any]]) -> list[str]:
    """The keys whose values are not the same in all of them, in their order."""
    keys = dict.fromkeys(key for one in group for key in one if "name" in one)
    return [key for key in keys if len({json.dumps(one.get(key)) for one in group}) > 1]


def _last_part(value: Any) -> Any:
    """Of a path, or a name of the hub, what stands behind its last slash: the rest says where, and would be long."""
    return value.rstrip("/").rpartition("/")[2] if isinstance(value, str) else value


def changes(values: Mapping[str, Any], left_out: Collection[str] = ()) -> str:
    """``epochs=5-rank=16`` of dotted keys and their values, in the order of the keys; empty where none are told.

    Args:
        left_out: keys that are not told.
    """
    told = {key: values[key] for key in sorted(values) if key not in left_out}
    name = "-".join(f"{short(key, told)}={label(_last_part(value))}" for key, value in told.items())
    if len(name.encode()) <= LONGEST:
        return name
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]
    return f"{name.encode()[: LONGEST - 9].decode(errors='ignore').rstrip('-.=,')}-{digest}"
