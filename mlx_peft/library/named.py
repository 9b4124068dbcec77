"""Many things by name, shown in a line."""

from __future__ import annotations

from typing import TypeVar

Value = TypeVar("Value")


class Named(dict[str, Value]):
    """A dictionary; at the end of a notebook's cell a line of it is shown, not hundreds."""

    def __init__(self, values: dict[str, Value], what: str) -> None:
        super().__init__(values)
        self.what = what

    def __repr__(self) -> str:
        names = ", ".join([*list(self)[:3], *(["..."] if len(self) > 3 else [])])
        return f"<{len(self)} {self.what}{': ' if self else ''}{names}>"
