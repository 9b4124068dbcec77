"""``study.json``: what a study is to make, what became of each run, and what was chosen from which candidates.

It lies in the study's folder, and is written again, whole, after each change::

    {
      "format": 1,
      "nodes": [                      # every run of the study, in the order of its file
        {
          "name": "lora-lr=0.001-seed=0",
          "kind": "tune",             # tune: to choose by, never tested; final: tested once; then: made of one
          "label": "lora",            # the line of a table that it belongs to: equal but for seeds, and what was chosen
          "method": "lora",
          "seed": 0,
          "changes": {"train.optimizer.lr": 0.001},   # its values on the axes, and of what is or was chosen
          "run_id": "0123456789ab",   # null, as the folder, while it is not chosen what the run is
          "folder": "lora-lr=0.001-seed=0",           # in the study's folder; a tune and a final of one id share it
          "step": null,               # of a then: its name in the file
          "of": null,                 # of a then: the name of the run that it is made of
          "status": "finished",       # waiting, running, finished, failed, interrupted
          "error": null,              # why it failed
          "seconds": 12.5             # that making it took, all attempts together; null: not known
        }
      ],
      "choices": [                    # an entry for each label of which something is chosen
        {
          "label": "lora",
          "metric": "val.top1",       # null until a trial is finished
          "direction": "max",         # or min
          "ties": "the lower val.loss, then the first in the file",
          "candidates": [
            {
              "changes": {"train.optimizer.lr": 0.001},
              "runs": ["lora-lr=0.001-seed=0"],       # the names of its nodes of kind tune
              "score": 0.91,          # the mean of the metric over these runs; null: not all of them are finished
              "loss": 0.3,            # the mean of val.loss likewise
              "error": null           # why it cannot be chosen
            }
          ],
          "chosen": 0                 # the place of the chosen one among the candidates; null: not yet, or none can be
        }
      ]
    }

Nothing in it decides what a run is: ``run_id`` follows from the suite's file and the images. Of an earlier record two
things are taken over: the errors of runs that failed, and seconds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlx_peft.core.errors import UserError
from mlx_peft.core.problems import in_a_line
from mlx_peft.core.writing import write_whole
from mlx_peft.training.run import json_bytes

RECORD = "study.json"
FORMAT = 1
LARGEST = 2**26
"""A record has at most so many bytes: that of some thousand runs has a tenth."""

Kind = Literal["tune", "final", "then"]
Status = Literal["waiting", "running", "finished", "failed", "interrupted"]

Text = Annotated[str, Field(max_length=100_000)]
Number = Annotated[float, Field(ge=-1e18, le=1e18)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class NodeRecord(_Part):
    """A run of the study: see the module's text."""

    name: Text
    kind: Kind
    label: Text
    method: Text
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    changes: dict[str, Any]
    run_id: Text | None
    folder: Text | None
    step: Text | None
    of: Text | None
    status: Status
    error: Text | None
    seconds: Number | None


class CandidateRecord(_Part):
    """Values that may be chosen."""

    changes: dict[str, Any]
    runs: list[Text]
    score: Number | None
    loss: Number | None
    error: Text | None


class ChoiceRecord(_Part):
    """What is chosen for a label, and from what."""

    label: Text
    metric: Text | None
    direction: Literal["max", "min"]
    ties: Text
    candidates: list[CandidateRecord]
    chosen: Annotated[int, Field(ge=0)] | None


class StudyRecord(_Part):
    """The contents of ``study.json``."""

    format: Literal[1] = 1
    nodes: list[NodeRecord] = []
    choices: list[ChoiceRecord] = []


def read_record(folder: Path) -> StudyRecord | None:
    """The record in a folder; None where there is none. Raises UserError where it is not what a study writes."""
    path = folder / RECORD
    try:
        if not path.exists():
            return None
        if not path.is_file() or path.stat().st_size > LARGEST:
            raise UserError(f"{path} is no record of a study: it should be a file of at most {LARGEST:,} bytes")
        return StudyRecord.model_validate(json.loads(path.read_text("utf-8")))
    except ValidationError as error:
        raise UserError(f"{path} is no record of a study: {in_a_line(error, StudyRecord)}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def write_record(folder: Path, record: StudyRecord) -> None:
    """Writes it whole. It has no digest elsewhere: it changes all the time, and decides nothing."""
    write_whole(folder / RECORD, json_bytes(record.model_dump(mode="json")))


@dataclass(frozen=True)
class Before:
    """What is known from an earlier time of the same study, by a run's identity and whether it reads the test split.

    Attributes:
        errors: of runs that failed.
        seconds: that making them took.
    """

    errors: dict[tuple[str, bool], str]
    seconds: dict[tuple[str, bool], float]

    @classmethod
    def of(cls, record: StudyRecord | None, *, retry: bool = False) -> Before:
        """What a record says; without the errors, where what failed is to be made again."""
        nodes = [] if record is None else [node for node in record.nodes if node.run_id is not None]
        keys = [((str(node.run_id), node.kind != "tune"), node) for node in nodes]
        return cls(
            {key: node.error or "" for key, node in keys if node.status == "failed" and not retry},
            {key: node.seconds for key, node in keys if node.seconds is not None},
        )
