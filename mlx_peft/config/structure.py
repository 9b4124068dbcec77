"""The experiment's schema as a tree: which sections there are, and which of them come in several kinds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pydantic import BaseModel

from mlx_peft.config.schema import Experiment
from mlx_peft.core.sections import Place, sections


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
