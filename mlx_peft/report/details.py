"""What a ``result.json`` says of the images of its test split, checked before anything is drawn of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mlx_peft.core.errors import UserError
from mlx_peft.core.problems import in_a_line

MOST_CLASSES, MOST_BINS = 2**20, 1000
BARS = ("auroc", "map", "support")
"""These are drawn of each class where there is no reliability: both measures, and how many images have it."""

Numbers = list[Annotated[float, Field(ge=-1e18, le=1e18)] | None]
Counts = list[Annotated[int, Field(ge=0, lt=2**63)]]


class Details(BaseModel):
    """The metrics of a split, and what the pictures are made of; what else there is may be anything."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    metrics: dict[str, Annotated[float, Field(ge=-1e18, le=1e18)]]
    classes: Annotated[list[str], Field(max_length=MOST_CLASSES)]
    confusion: list[Counts] | None
    per_class: dict[str, Numbers]
    reliability: dict[str, Annotated[Numbers, Field(min_length=1, max_length=MOST_BINS)]]

    @model_validator(mode="after")
    def _fit_together(self) -> Details:
        drawn = ("count", "confidence", "accuracy") if self.reliability else ()
        bars = BARS if not self.reliability and any(name in self.per_class for name in BARS[:2]) else ()
        if any(name not in self.reliability for name in drawn) or any(name not in self.per_class for name in bars):
            raise ValueError(f"should have {', '.join(drawn or bars)}")
        if self.reliability and "ece" not in self.metrics:
            raise ValueError("should have the metric ece")
        if len({len(self.reliability[name]) for name in drawn}) > 1:
            raise ValueError("reliability should be lists of one length")
        rows: list[Sequence[object]] = [*self.per_class.values()]
        rows += [] if self.confusion is None else [self.confusion, *self.confusion]
        if any(len(row) != len(self.classes) for row in rows):
            raise ValueError(f"should have a number for each of the {len(self.classes)} classes")
        return self


def checked(result: Mapping[str, Any], path: Path) -> dict[str, Any] | None:
    """The details of the test split; None where there are none. Raises UserError where they are not a run's."""
    details, metrics = result.get("details"), result.get("metrics")
    found = details.get("test") if isinstance(details, dict) else details
    if found is None:
        return None
    try:
        if not isinstance(found, dict) or not isinstance(metrics, dict):
            raise UserError(f"{path}: details and metrics should be sections")
        Details.model_validate({**found, "metrics": metrics.get("test")})
    except ValidationError as error:
        raise UserError(f"{path}: details.test is not what a run writes: {in_a_line(error, Details)}") from None
    return found
