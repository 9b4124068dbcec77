"""Checked sections as a tree, whatever holds them: models of pydantic's and dataclasses that it validates."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

Place = tuple[str | int, ...]
"""The keys that lead to a value: ``("method", "targets", 0)``."""


def dotted(place: Place) -> str:
    """``method.targets[0]``, as a person writes it; ``experiment`` for the whole."""
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place)
    return path.removeprefix(".") or "experiment"


def locate(loc: tuple[str | int, ...], root: type) -> tuple[Place, Any, bool]:
    """The place a pydantic location stands for; the annotation there (for an unknown key: of the section that holds
    it); and whether the location ends among the alternatives of a plain union."""
    place: Place = ()
    annotation: Any = root
    for key in loc:
        kinds = sections(annotation)
        origin, arguments = get_origin(bare(annotation)), get_args(bare(annotation))
        if len(kinds) > 1 and key in variants(kinds):
            annotation = variants(kinds)[str(key)]
            continue
        if kinds:
            annotation = fields(kinds[0]).get(str(key), annotation)
        elif origin is dict:
            annotation = arguments[1]
        elif origin in (list, tuple):
            annotation = arguments[0]
        else:
            return place, annotation, True
        place = (*place, key)
    return place, annotation, False


def bare(annotation: Any) -> Any:
    """The annotation without ``Annotated`` and ``| None``."""
    if get_origin(annotation) is Annotated:
        return bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [item for item in get_args(annotation) if item is not types.NoneType]
        if len(inner) == 1:
            return bare(inner[0])
    return annotation


def sections(annotation: Any) -> list[type]:
    """The sections an annotation allows: none for a plain value, several where ``name`` chooses."""
    annotation = bare(annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        return [model for item in get_args(annotation) for model in sections(item)]
    plain = isinstance(annotation, type) and get_origin(annotation) is None  # in Python 3.10 list[int] is a type too
    return [annotation] if plain and (issubclass(annotation, BaseModel) or is_dataclass(annotation)) else []


def fields(section: type) -> Mapping[str, Any]:
    """The annotation of each key of a section."""
    if issubclass(section, BaseModel):
        return {field.alias or name: field.annotation for name, field in section.model_fields.items()}
    return get_type_hints(section, include_extras=True)


def variants(kinds: Iterable[type]) -> dict[str, type]:
    """Sections by the ``name`` that chooses each."""
    return {
        str(get_args(name)[0]): model
        for model in kinds
        if (name := fields(model).get("name")) and get_origin(name) is Literal
    }
