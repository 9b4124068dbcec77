"""What every part of a configuration has in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the experiment: frozen, and strict about names. Every number is finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
