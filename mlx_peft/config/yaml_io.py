"""YAML as a person expects it: text to plain values with the line of each, and back."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import yaml

from mlx_peft.core.errors import UserError, shortened, shown
from mlx_peft.core.sections import Place

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
KEPT = 16 * 1024
"""Of a text of so many characters at most it is remembered what it holds."""
LONGEST = 400
"""So many characters of the parser's message are shown: it quotes the text."""

"""The keys that lead to a value: ``("method", "targets", 0)``."""


@dataclass(frozen=True)
class Document:
    """A mapping that was read, and where each of its values stands: ``lora.yaml:3``."""

    values: dict[str, Any]
    where: dict[Place, str]


class _Loader(yaml.SafeLoader):
    """The core schema of YAML 1.2: ``1e-3`` is a number, ``no`` and ``2024-01-01`` are text. Aliases are refused."""

    depth = 0

    def fetch_flow_collection_start(self, token: Any) -> None:
        """Refuses brackets in brackets where they stand, before the scanner looks on from within all of them."""
        if self.flow_level > MAX_DEPTH:
            mark = self.get_mark()
            raise yaml.MarkedYAMLError(None, None, f"nested deeper than {MAX_DEPTH}", mark)
        super().fetch_flow_collection_start(token)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        mark: Any = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(None, None, "aliases are not read; compose files with base", mark)
        if self.depth >= MAX_DEPTH:
            raise yaml.MarkedYAMLError(None, None, f"nested deeper than {MAX_DEPTH}", mark)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


class _Dumper(yaml.SafeDumper):
    """Sections as blocks, lists of plain values on one line, and quotes where this or another reader needs them."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _list_node(dumper: _Dumper, data: list[Any]) -> yaml.Node:
    flat = not any(isinstance(item, dict | list) for item in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flat)


_Dumper.add_representer(list, _list_node)
_Loader.yaml_implicit_resolvers = {}  # the dumper keeps YAML 1.1's, so that other readers get the same values

_NAME = re.compile(r"[^\x00-\x1f\ud800-\udfff]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$")
_RESOLVERS = (
    ("null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(r"[-+]?[0-9]+$"), list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
)
for _tag, _pattern, _first in _RESOLVERS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _first)


def _text(text: str) -> str:
    text.encode()  # a lone surrogate, from an escape, is no text
    return text


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is out of range")
    return number


_SCALARS: dict[str, Callable[[str], Any]] = {
    "tag:yaml.org,2002:null": lambda text: None,
    "tag:yaml.org,2002:bool": lambda text: text.lower() == "true",
    "tag:yaml.org,2002:int": int,
    "tag:yaml.org,2002:float": _finite,
    "tag:yaml.org,2002:str": _text,
}


def parse(text: str, source: str) -> Document:
    """Reads one mapping; an empty text is an empty mapping. ``source`` names the text in errors.

    Raises UserError, with the line, on what is not YAML, a key written twice, an alias, a foreign tag, a number out of
    range, or nesting deeper than ``MAX_DEPTH``.
    """
    where: dict[Place, str] = {}
    values = _read(text, source, where)
    if values is None:
        return Document({}, {})
    if not isinstance(values, dict):
        raise UserError(f"{source}: should hold keys and values, such as 'seed: 0'")
    return Document(values, where)


def parse_value(text: str, source: str) -> Any:
    """Reads one value of any kind, as it would be read after ``key:``. Raises UserError as ``parse`` does."""
    return _read(text, source, {})


def write(values: dict[str, Any]) -> str:
    """The YAML of plain values, in their order; ``parse`` reads the same back."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _composed(text: str) -> yaml.Node | None:
    return _Loader(text).get_single_node()


_remembered = lru_cache(maxsize=16)(_composed)
"""A command reads its recipe, or its run's configuration, several times; nobody changes a node."""


def _read(text: str, source: str, where: dict[Place, str]) -> Any:
    try:
        node = _remembered(text) if len(text) <= KEPT else _composed(text)
        return None if node is None else _plain(node, (), source, where)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        problem = ", ".join(filter(None, (error.context, error.problem)))
        raise UserError(f"{source}{line}: {shortened(problem, LONGEST)}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{source}: {shortened(str(error).splitlines()[0], LONGEST)}") from None


def _plain(node: yaml.Node, path: Place, source: str, where: dict[Place, str]) -> Any:
    """Values of a node, noting where each stands."""
    where[path] = f"{source}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
        return [_plain(item, (*path, index), source, where) for index, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
        values: dict[str, Any] = {}
        for key, value in node.value:
            line = f"{source}:{key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode) or not _NAME.fullmatch(key.value):
                raise UserError(f"{line}: a key should be a name")
            name, place = key.value, (*path, key.value)
            if name in values:
                raise UserError(f"{line}: {shown(name)} is written twice; first at {where[place]}")
            values[name] = _plain(value, place, source, where)
            where[place] = line
        return values
    if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
        try:
            return _SCALARS[node.tag](node.value)
        except ValueError:
            raise UserError(f"{where[path]}: {shown(node.value)} cannot be read") from None
    raise UserError(f"{where[path]}: the tag {shown(node.tag)} is not read; write plain values")
