"""A reducer as a person writes it in one text, at a shell or in a notebook."""

from __future__ import annotations

import re
from typing import Any

from mlx_peft.config import yaml_io
from mlx_peft.config.tokens import NONE, ReducerConfig, described
from mlx_peft.core.errors import UserError, shown

_WORD = re.compile(r"[^\s\[\]]*\[[^\[\]]*\]|\S+")  # a list with the blanks in it


def reducer_of(text: str) -> ReducerConfig | None:
    """What a person asks for in one text: ``tome r=13``, ``evit keep=0.7 blocks=[3,6,9]``, or ``none``.

    Raises UserError where there is no such reducer or option.
    """
    name, *options = _WORD.findall(text)[:64] or [""]
    if name == NONE and not options:
        return None
    where = f"tokens {shown(text)}"
    try:
        return described(_options(name, options, where), where, NONE)
    except UserError as error:
        raise UserError(str(error), arguments=("tokens",)) from None


def _options(name: str, options: list[str], where: str) -> dict[str, Any]:
    values: dict[str, Any] = {"name": name}
    for option in options:
        key, equals, value = option.partition("=")
        if name == NONE:
            raise UserError(f"{where}: {NONE} has no options")
        if not equals:
            raise UserError(f"{shown(option)} is no option of {name}; write it like 'r=13'")
        if key in values:
            raise UserError(f"{where}: {shown(key)} is written twice")
        try:
            values[key] = yaml_io.parse_value(value, where)
        except UserError:
            raise UserError(f"{where}: {shown(option)} cannot be read; write r=13 or blocks=[3,6,9]") from None
    return values
