"""What a suite chooses on validation images before it makes a run for good, and what its runs need of a host."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from mlx_peft.config import yaml_io
from mlx_peft.config.section import Section
from mlx_peft.core.bounds import LARGEST, Gigabytes, Name, Seed
from mlx_peft.core.errors import shown

MAX_KEYS = 150
"""A set, or the axes, may have so many keys: an experiment has about as many in all."""

KEY = re.compile(r"\w+(\.\w+)*")


def _keys(changes: dict[str, Any]) -> dict[str, Any]:
    if len(changes) > MAX_KEYS:
        raise ValueError(f"has {len(changes):,} keys, at most {MAX_KEYS}: an experiment has no more")
    for key in changes:
        if not KEY.fullmatch(key) or key.count(".") >= yaml_io.MAX_DEPTH:
            raise ValueError(f"{shown(key)} is no key; write a section's name, or a path such as method.rank")
    return changes


def _each_has_values(axes: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    if empty := [key for key, values in axes.items() if not values]:
        raise ValueError(f"{empty[0]} should have at least one value")
    return axes


Changes = Annotated[dict[str, Any], AfterValidator(_keys)]
"""``train.epochs: 5`` changes one key; ``method: {name: linear}`` takes the place of the whole section."""

Axes = Annotated[dict[str, tuple[Any, ...]], AfterValidator(_keys), AfterValidator(_each_has_values)]
"""Keys, each with the values it takes in turn: every combination is a run."""

Seeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1)]


class Range(Section):
    """Numbers to look among."""

    low: float = Field(ge=-LARGEST, le=LARGEST)
    high: float = Field(ge=-LARGEST, le=LARGEST)
    log: bool = Field(False, description="whether each order of magnitude has an equal share")

    @model_validator(mode="after")
    def _goes_up(self) -> Range:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"from {self.low:g} to {self.high:g} is no range{' that has orders' if self.log else ''}")
        return self


class Tuning(Section):
    """What is chosen, by runs that never read the test split: of a grid, or of what Optuna proposes."""

    axes: Axes = Field(default_factory=dict, description="a grid: each key with the values to choose from")
    search: Annotated[dict[str, Range], AfterValidator(_keys)] = Field(
        default_factory=dict, description="in place of a grid: ranges in which Optuna looks (pip install optuna)"
    )
    trials: int | None = Field(None, ge=1, le=1000, description="of search: how many values are tried")
    at_once: int = Field(1, ge=1, le=1000, description="of search: so many know nothing of each other")
    search_seed: Seed = 0
    set: Changes = Field(default_factory=dict, description="changes for these runs alone, such as fewer epochs")
    seeds: Seeds | None = Field(None, description="each value is tried once for each; null: the first of the suite's")
    metric: Name | None = Field(None, description="of the validation split, their mean; null: the task's leading one")
    direction: Literal["max", "min"] | None = Field(None, description="what is better; null: min for loss, else max")

    @model_validator(mode="after")
    def _is_one_way(self) -> Tuning:
        if self.axes and self.search:
            raise ValueError("axes are a grid, and search are ranges for Optuna: choose one")
        if (self.trials is None) != (not self.search):
            raise ValueError("search needs trials, how many values are tried, and nothing else has them")
        return self

    @property
    def keys(self) -> tuple[str, ...]:
        """What is chosen; none where nothing is."""
        return (*self.axes, *self.search)

    @property
    def corners(self) -> tuple[Mapping[str, Any], ...]:
        """The ends of the ranges: what fits there is taken to fit between."""
        ranges = self.search
        return tuple({key: getattr(one, end) for key, one in ranges.items()} for end in ("low", "high") if ranges)


class Resources(Section):
    """What a run needs of a host of a cluster. No part of what a run is: it may be made anywhere."""

    cpus: float = Field(1, gt=0, le=1e6)
    gpus: float = Field(0, ge=0, le=1e6)
    memory: Gigabytes = Field(0.0, description="GB that are set aside; 0: not asked for")
    custom: dict[Name, Annotated[float, Field(gt=0, le=1e6)]] = Field(
        default_factory=dict, description="what hosts were given by name, such as {mlx: 1}"
    )
