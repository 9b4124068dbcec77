"""The experiment's schema as a tree: which sections there are, and which of them come in several kinds."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

from pydantic import BaseModel

from mlx_peft.config.schema import Experiment
from mlx_peft.config.yaml_io import Place


def dotted(place: Place) -> str:
    """``method.targets[0]``, as a person writes it; ``experiment`` for the whole."""
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place)
    return path.removeprefix(".") or "experiment"


def value_at(values: Any, place: Place) -> Any:
    """The value that the keys lead to; None where there is none."""
    for key in place:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def changes_variant(place: Place, below: Mapping[str, Any], above: Mapping[str, Any]) -> bool:
    """Whether the section at ``place`` is one of several kinds, told apart by ``name``, and ``above`` names another."""
    old = below.get("name", _UNIONS.get(place))
    return place in _UNIONS and "name" in above and old is not None and above["name"] != old


def with_default_names(values: dict[str, Any]) -> dict[str, Any]:
    """Names the variant where a section of several kinds leaves it out and the schema has a default."""

    def named(section: Any, place: Place) -> Any:
        if not isinstance(section, dict):
            return section
        default = _UNIONS.get(place)
        inner = {key: named(value, (*place, key)) for key, value in section.items()}
        return inner if default is None or "name" in inner else {"name": default} | inner

    return cast(dict[str, Any], named(values, ()))


def locate(loc: tuple[str | int, ...], root: type[BaseModel] = Experiment) -> tuple[Place, Any, bool]:
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
            field = kinds[0].model_fields.get(str(key))
            annotation = annotation if field is None else field.annotation
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


def sections(annotation: Any) -> list[type[BaseModel]]:
    """The sections an annotation allows: none for a plain value, several where ``name`` chooses."""
    annotation = bare(annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        return [model for item in get_args(annotation) for model in sections(item)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []


def variants(kinds: Iterable[type[BaseModel]]) -> dict[str, type[BaseModel]]:
    """Sections by the ``name`` that chooses each."""
    return {
        str(get_args(name.annotation)[0]): model
        for model in kinds
        if (name := model.model_fields.get("name")) and get_origin(name.annotation) is Literal
    }


def _unions(model: type[BaseModel], place: Place = ()) -> dict[Place, str | None]:
    """Where ``name`` chooses a section's kind, and the name that counts where it is left out, if there is one."""
    found: dict[Place, str | None] = {}
    for key, field in model.model_fields.items():
        kinds, inner = sections(field.annotation), (*place, key)
        if len(kinds) == 1:
            found |= _unions(kinds[0], inner)
        elif kinds:
            default = field.get_default(call_default_factory=True)
            found[inner] = getattr(default, "name", None)
    return found


_UNIONS = _unions(Experiment)
