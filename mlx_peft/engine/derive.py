"""What is made of a finished run, and how good it is: the run's model merged or in few bits, on the run's images."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from mlx_peft.config.errors import UserError
from mlx_peft.config.step import Step
from mlx_peft.engine.load import evaluate_splits, merge_run, quantize_model
from mlx_peft.engine.run import RunFolder, write_json

MODEL = "model"
"""The folder of what was made, inside the step's."""

Make = Callable[[Path, Step, Path], object]


def _merge(run: Path, step: Step, out: Path) -> None:
    merge_run(run, out, dequantize=step.merge == "dequantize", requantize=step.merge == "requantize")


def _quantize(run: Path, step: Step, out: Path) -> None:
    assert step.quantize is not None
    quantize_model(run, out, step.quantize)


MAKE: dict[str, Make] = {"merge": _merge, "quantize": _quantize}
"""By a step's kind: writes the model of a run."""


def step_id(run_id: str, step: Step) -> str:
    """Twelve hexadecimal digits: equal for equal steps of equal runs."""
    text = json.dumps([run_id, step.model_dump(mode="json", exclude={"name"}, exclude_none=True)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def check_folder(folder: RunFolder, identity: str) -> None:
    """Raises UserError where a folder holds anything but this step, finished or begun."""
    if (result := folder.read_result()) is not None and result.get("run_id") != identity:
        raise UserError(f"{folder.path} holds something else ({result.get('run_id')}): choose another --out")
    if result is None and folder.path.exists() and (strange := {p.name for p in folder.path.iterdir()} - {MODEL}):
        raise UserError(f"{folder.path} is not empty ({min(strange)}): choose another --out")


def derive(run: Path, step: Step, out: Path) -> dict[str, Any]:
    """Makes a step of the finished run in the folder ``run``, measures it, and writes ``out/result.json``.

    The splits are those that the run was measured on. Returns the result; it has the form of a run's, with what only
    training has left out. Raises UserError where it cannot be made.
    """
    folder, parent = RunFolder(out), RunFolder(run).read_result()
    if parent is None:
        raise UserError(f"{run} is not finished")
    identity = step_id(parent["run_id"], step)
    check_folder(folder, identity)
    if (done := folder.read_result()) is not None:
        return done
    shutil.rmtree(out / MODEL, ignore_errors=True)  # half of an earlier attempt
    MAKE[step.kind](run, step, out / MODEL)
    measured: list[Literal["val", "test"]] = ["val", "test"]
    splits = [split for split in measured if parent["metrics"][split]]
    metrics, learner = evaluate_splits(run, splits, model=out / MODEL)
    stored = sum(file.stat().st_size for file in (out / MODEL).glob("*.safetensors"))
    result = {
        "run_id": identity,
        "status": "finished",
        **{key: parent[key] for key in ("backend", "model", "method", "dataset", "seed")},
        "of": parent["run_id"],
        "step": step.model_dump(mode="json", exclude_none=True),
        "metrics": {"val": None, "test": None} | metrics,
        "stored": {"base_bytes": stored, "adapter_bytes": 0, "total_bytes": stored},
        "memory": {"peak_bytes": learner.peak_memory()},
        "splits": parent["splits"],
        "environment": parent["environment"],
    }
    write_json(folder.result, result)
    return result
