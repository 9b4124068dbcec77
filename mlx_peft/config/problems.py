"""What is wrong with an experiment, in words for the person who wrote it: pydantic's errors by the keys of the file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mlx_peft.config.methods import OPTIONS
from mlx_peft.config.schema import Experiment
from mlx_peft.config.structure import bare, dotted, locate, sections, variants
from mlx_peft.config.yaml_io import Place
from mlx_peft.core.errors import suggest

EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "path_type": "a path",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a section of keys and values",
    "model_type": "a section of keys and values",
    "model_attributes_type": "a section of keys and values",
}


def explain(error: ValidationError, root: type[BaseModel] = Experiment) -> dict[Place, str]:
    """One message for each place of a ``root`` that is wrong, in pydantic's order."""
    found: dict[Place, str] = {}
    for detail in error.errors(include_url=False):
        place, annotation, alternatives = locate(detail["loc"], root)
        if detail["type"] == "too_short" and any(inner[: len(place)] == place for inner in found):
            continue  # pydantic counts only the items that are right, and the wrong ones are named
        if detail["type"] in ("union_tag_not_found", "union_tag_invalid"):
            place = (*place, "name")
        if alternatives:
            found[place] = f"should be a number, text, true, false or null, not {_shown(detail['input'])}"
        else:
            found.setdefault(place, _message(detail, annotation))
    return found


def listed(found: Mapping[Place, str], where: Mapping[Place, str]) -> str:
    """The messages, one ``path: message`` a line, each with the file and line where that is known."""
    lines = []
    for place, message in found.items():
        source = where.get(place) or where.get(tuple(key for key in place if not isinstance(key, int)))
        lines.append(f"  {dotted(place)}: {message}{f'  [{source}]' if source else ''}")
    return "\n".join(lines)


def _message(detail: ErrorDetails, annotation: Any) -> str:
    kind, value = detail["type"], detail["input"]
    kinds = sections(annotation)
    if kind == "extra_forbidden":
        return "unknown key" + _or_known(str(detail["loc"][-1]), kinds[0].model_fields if kinds else ())
    if kind == "missing":
        return "missing"
    if kind == "union_tag_not_found":
        return f"missing; one of {', '.join(map(repr, variants(kinds)))}"
    if kind == "union_tag_invalid":
        wrong = str(value["name"])
        if meant := OPTIONS.get(wrong.lower()):
            return f"unknown {wrong!r}: it is {meant}"
        return f"unknown {value['name']!r}" + _or_known(wrong, variants(kinds))
    if kind == "literal_error":
        known = [str(item) for item in get_args(bare(annotation))]
        return f"unknown {_shown(value)}" + _or_known(str(value), known)
    if kind == "value_error":
        return str(detail["ctx"]["error"])
    if kind in ("too_long", "too_short"):
        bounds = detail["ctx"]
        bound = f"at most {bounds['max_length']}" if kind == "too_long" else f"at least {bounds['min_length']}"
        return f"should be a list of {bound}, not {_shown(value)}"
    if kind in EXPECTED:
        names = list(variants(kinds)) if len(kinds) > 1 else []
        name = value if value in names else next(iter(names), None)
        return f"should be {EXPECTED[kind]}{f', such as {{name: {name}}}' if name else ''}, not {_shown(value)}"
    return f"{detail['msg'].removeprefix('Input ')}, not {_shown(value)}"


def _or_known(wrong: str, known: Iterable[str]) -> str:
    known = list(known)
    return suggest(wrong, known, count=1) or f"; known: {', '.join(known)}"


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
