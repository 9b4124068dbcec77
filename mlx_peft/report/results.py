"""What of a run's ``result.json`` is shown, and must therefore be of its kind."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mlx_peft.tasks.registry import leading_metrics

Text = Annotated[str, Field(max_length=1000)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Measure = Annotated[float, Field(ge=-1e18, le=1e18)]


class _Part(BaseModel):
    """A part of a result: what is shown must be of its kind, the rest may be anything, and all of it may be missing."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class _Split(_Part):
    """The metrics of a split; the tasks' leading ones are shares."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    loss: Measure | None = None
    count: Measure | None = None

    @model_validator(mode="after")
    def _has_shares(self) -> _Split:
        for name in leading_metrics():
            value = (self.model_extra or {}).get(name)
            if value is not None and not (is_number(value) and 0 <= value <= 1):
                raise ValueError(f"{name} should be from 0 to 1")
        return self


class _Metrics(_Part):
    val: _Split | None = None
    test: _Split | None = None


class _Digest(_Part):
    """Which images a split has."""

    sha256: Text | None = None


class _Splits(_Part):
    val: _Digest | None = None
    test: _Digest | None = None


class _Parameters(_Part):
    trainable: Count | None = None
    adapter: Count | None = None
    total: Count | None = None


class _Time(_Part):
    train_seconds: Measure | None = None
    epoch_seconds: Measure | None = None
    images_per_second: Measure | None = None


class _Stored(_Part):
    total_bytes: Count | None = None


class _Memory(_Part):
    peak_bytes: Count | None = None
    arrays_bytes: Count | None = None
    process_bytes: Count | None = None


class _Selected(_Part):
    epoch: Count | None = None
    by: Text | None = None


class _Weights(_Part):
    """What a step made of weights: ``quantize`` says ``bits``, ``simulate`` says ``weights``."""

    bits: Count | None = None
    weights: Count | None = None


class _Step(_Part):
    name: Text | None = None
    quantize: _Weights | None = None
    simulate: _Weights | None = None


class _Preprocessing(_Part):
    mean: Annotated[list[Measure], Field(max_length=4)]
    std: Annotated[list[Measure], Field(max_length=4)]


class Result(_Part):
    """What of a ``result.json`` is shown. It says what a run is by nothing but its identity."""

    run_id: Text
    configuration_id: Text | None = None
    method: Text | None = None
    tokens: Text | None = None
    model: Text | None = None
    dataset: Text | None = None
    backend: Text | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    metrics: _Metrics | None = None
    splits: _Splits | None = None
    parameters: _Parameters | None = None
    time: _Time | None = None
    stored: _Stored | None = None
    memory: _Memory | None = None
    selected: _Selected | None = None
    of: Text | None = None
    step: _Step | None = None
    preprocessing: _Preprocessing | None = None


def is_number(value: Any) -> bool:
    """Whether it is a number that can be drawn."""
    return type(value) in (int, float) and -1e18 <= value <= 1e18  # which NaN is not
