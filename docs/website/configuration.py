"""The page of the configuration, made of the schema: every key that an experiment may have."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mlx_peft.config.schema import Experiment
from mlx_peft.core.sections import bare, sections


def page() -> str:
    """The page behind its first words, in Markdown."""
    lines: list[str] = []
    for path, section in _sections("", Experiment):
        lines += _table(path, section)
    return "\n".join(lines)


def _sections(path: str, section: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """A section and those in it, each with the keys that lead to it: ``data.augment``."""
    yield path, section
    for name, field in section.model_fields.items():
        for inner in sections(field.annotation):
            yield from _sections(f"{path}.{field.alias or name}".removeprefix("."), inner)


def _table(path: str, section: type[BaseModel]) -> Iterator[str]:
    chosen = section.model_fields.get("name")
    choice = get_args(bare(chosen.annotation)) if chosen and get_origin(bare(chosen.annotation)) is Literal else ()
    yield f"## {f'{path}: {choice[0]}' if len(choice) == 1 else path or 'experiment'}\n"
    if said := section.__dict__.get("__doc__"):
        yield f"{_plain(said)}\n"
    rows = [(field.alias or name, field) for name, field in section.model_fields.items()]
    yield "| key | value | if left out | what it is |\n|---|---|---|---|"
    for name, field in rows:
        cells = (
            f"`{name}`",
            f"`{_kind(field.annotation)}`",
            _default(field),
            _cell(_plain(field.description or "")),
        )
        yield f"| {' | '.join(cells)} |"
    yield ""


def _kind(annotation: Any) -> str:
    """What may be written there: ``number or null``, ``mlx | torch``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys("section" if sections(one) else _kind(one) for one in arguments))
    if origin is Literal:
        return " | ".join(str(one) for one in arguments)
    if origin in (list, tuple):
        inner = [_kind(one) for one in arguments if one is not Ellipsis]
        return f"[{', '.join(inner) if len({*inner}) > 1 else inner[0] + ', ...'}]"
    if origin is dict:
        return f"{{{_kind(arguments[0])}: {_kind(arguments[1])}, ...}}"
    if sections(annotation):
        return "section"
    words = {bool: "true | false", int: "whole number", float: "number", str: "text", types.NoneType: "null"}
    return words.get(
        annotation, "path" if "Path" in str(annotation) else str(getattr(annotation, "__name__", annotation))
    )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or isinstance(value, BaseModel):
        return "its defaults"
    return f"`{json.dumps(value, default=str).strip(chr(34))}`"


def _plain(text: str) -> str:
    paragraphs = [re.sub(r"\s+", " ", part).strip() for part in text.strip().split("\n\n")]
    return "\n\n".join(paragraphs).replace("<", "&lt;")


def _cell(text: str) -> str:
    return text.replace("\n\n", " ").replace("|", "\\|")
