"""What is wrong with a section, in words for the person who wrote it: pydantic's errors by the keys of the file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mlx_peft.core.errors import UserError, shortened, shown, suggest
from mlx_peft.core.sections import Place, bare, dotted, fields, locate, sections, variants

Root = TypeVar("Root", bound=BaseModel)

MOST, MOST_EXPLAINED = 40, 1000
"""A message names so many places, and so many are looked at: a file has room for a hundred thousand wrong keys."""

LONGEST = 400
"""A message about one place has at most so many characters."""

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

ALTERNATIVES: dict[Any, tuple[str, ...]] = {
    int: ("a number",),
    float: ("a number",),
    str: ("text",),
    dict: ("a section of keys and values",),
    bool: ("true", "false"),
    NoneType: ("null",),
}
"""The words for what may stand where several kinds of plain values may."""


class Hints:
    """What was meant by a name that there is not, as the tail of a message; here: what is spelled most like it."""

    def of_key(self, place: Place, known: Sequence[str]) -> str:
        """Of a key, at the end of its place, in a section that has the known ones."""
        return suggest(str(place[-1]), known, count=1)

    def of_value(self, wrong: str, known: Sequence[str]) -> str:
        """Of a value in the place of one of the known ones."""
        return suggest(wrong, known, count=1)


def explain(error: ValidationError, root: type, hints: Hints | None = None) -> dict[Place, str]:
    """One message for each place of a ``root`` that is wrong, in pydantic's order; of very many the first."""
    found: dict[Place, str] = {}
    for detail in error.errors(include_url=False)[:MOST_EXPLAINED]:
        place, annotation, alternatives = locate(detail["loc"], root)
        if detail["type"] == "too_short" and any(inner[: len(place)] == place for inner in found):
            continue  # pydantic counts only the items that are right, and the wrong ones are named
        if detail["type"] in ("union_tag_not_found", "union_tag_invalid"):
            place = (*place, "name")
        if alternatives:
            found[place] = f"should be {_any_of(annotation)}, not {shown(detail['input'])}"
        else:
            found.setdefault(place, shortened(_message(detail, place, annotation, hints or Hints()), LONGEST))
    return found


def in_a_line(error: ValidationError, root: type) -> str:
    """All that is wrong with a ``root`` that is no file of the user's own, as one clause."""
    found = explain(error, root)
    parts = [f"{dotted(place)}: {message}" if place else message for place, message in list(found.items())[:MOST]]
    return "; ".join(parts) + ("; and others" if len(found) > MOST else "")


def reason(error: Exception, root: type) -> str:
    """Why a ``root`` could not be made: pydantic's own text ends in the address of a web page."""
    return in_a_line(error, root) if isinstance(error, ValidationError) else of_value(error)


def of_value(error: Exception) -> str:
    """Why what was read could not be used, where Python's own text says too little: of a missing key only its name."""
    if isinstance(error, KeyError):
        return f"{error.args[0] if error.args else 'a key'} is missing"
    if isinstance(error, (TypeError, AttributeError)):
        return f"a value is of another kind than it should be: {error}"
    return str(error) or type(error).__name__


def validated(root: type[Root], where: str, values: Mapping[str, Any]) -> Root:
    """A section of values that do not come from a file of experiments. Raises UserError, ``where`` at its head."""
    try:
        return root.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{where}: {in_a_line(error, root)}") from None


def in_lines(found: Mapping[Place, str], where: Mapping[Place, str]) -> str:
    """The messages, one ``path: message`` a line, each with the file and line where that is known."""
    lines = []
    for place, message in list(found.items())[:MOST]:
        source = where.get(place) or where.get(tuple(key for key in place if not isinstance(key, int)))
        lines.append(f"  {shortened(dotted(place), LONGEST)}: {message}{f'  [{source}]' if source else ''}")
    if len(found) > MOST:
        lines.append(f"  and others: these are the first {MOST}")
    return "\n".join(lines)


def _message(detail: ErrorDetails, place: Place, annotation: Any, hints: Hints) -> str:
    kind, value = detail["type"], detail["input"]
    kinds = sections(annotation)

    def unknown(wrong: Any, known: Iterable[str]) -> str:
        there = list(known)
        return f"unknown {shown(wrong)}{hints.of_value(str(wrong), there) or _listed(there)}"

    if kind == "extra_forbidden":
        known = list(fields(kinds[0])) if kinds else []
        return f"unknown key{hints.of_key(place, known) or _listed(known)}"
    if kind == "missing":
        return "missing"
    if kind == "union_tag_not_found":
        return f"missing; one of {', '.join(map(repr, variants(kinds)))}"
    if kind == "union_tag_invalid":
        return unknown(value["name"], variants(kinds))
    if kind == "literal_error":
        return unknown(value, map(str, get_args(bare(annotation))))
    if kind == "value_error":
        return str(detail["ctx"]["error"])
    if kind in ("too_long", "too_short"):
        bounds = detail["ctx"]
        bound = f"at most {bounds['max_length']}" if kind == "too_long" else f"at least {bounds['min_length']}"
        return f"should be a list of {bound}, not {shown(value)}"
    if kind == "string_too_long":
        return f"should be text of at most {detail['ctx']['max_length']} characters, not {shown(value)}"
    if kind in EXPECTED:
        names = list(variants(kinds)) if len(kinds) > 1 else []
        name = value if value in names else next(iter(names), None)
        such = f", such as {{name: {name}}}" if name else ""
        null = f"{',' if such else ''} or null" if kinds and NoneType in get_args(annotation) else ""
        return f"should be {EXPECTED[kind]}{such}{null}, not {shown(value)}"
    return f"{detail['msg'].removeprefix('Input ')}, not {shown(value)}"


def _any_of(union: Any) -> str:
    """The kinds of a plain union: ``a number, text, true, false or null``."""
    kinds = {get_origin(bare(item)) or bare(item) for item in get_args(union)}
    words = [word for kind, words in ALTERNATIVES.items() if kind in kinds for word in words]
    words = list(dict.fromkeys(words))
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _listed(known: Sequence[str]) -> str:
    return f"; known: {', '.join(known)}"
