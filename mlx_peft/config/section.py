"""What every part of a configuration has in common."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mlx_peft.config.problems import in_a_line
from mlx_peft.core.errors import UserError

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)


class _InWords(ModelMetaclass):
    """A section that is made by its name, ``LoRA(rank=8)``, says in one sentence what is wrong with it.

    What is checked as a part of something larger does not come through here: there all errors are told at once.
    """

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if args:
            options = ", ".join([*list(inspect.signature(cls).parameters)[:4], "..."])
            raise UserError(f"{cls.__name__}: options are given by their names: {options}")
        try:
            return super().__call__(**kwargs)
        except ValidationError as error:
            raise UserError(f"{cls.__name__}: {in_a_line(error, cls)}") from None


class Section(BaseModel, metaclass=_InWords):
    """A part of the experiment: frozen, and strict about names. Every number is finite.

    Raises UserError where a name is unknown, or a value does not fit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __setattr__(self, name: str, value: Any) -> None:
        raise UserError(f"{type(self).__name__} stays as it was made: make another one, with {name}={value!r}")

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """What is not at its default: ``LoRA(rank=16)``."""
        usual = {name: field.get_default(call_default_factory=True) for name, field in type(self).model_fields.items()}
        return ((name, value) for name, value in super().__repr_args__() if name not in usual or value != usual[name])
