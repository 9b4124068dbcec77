"""What is made of a finished run, and how good it is: the run's model merged or in few bits, on the run's images."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mlx_peft.artifacts.examine import examine_splits
from mlx_peft.artifacts.merge import Written, merge_run, quantize_model
from mlx_peft.artifacts.simulate import simulate_run
from mlx_peft.config.step import Step
from mlx_peft.core.errors import UserError
from mlx_peft.core.json_io import canonical
from mlx_peft.core.memory import peak_facts, process_peak
from mlx_peft.core.sums import SUMS, write_with_sums
from mlx_peft.protocols.loading import load_backend
from mlx_peft.tasks.metrics import Metrics
from mlx_peft.training.predictions import Predictions, encoded
from mlx_peft.training.run import RunFolder, json_bytes

MODEL = "model"
"""A model that was made lies in this folder, inside the step's."""

SplitName = Literal["val", "test"]


@dataclass(frozen=True)
class Made:
    """What was measured of a step.

    Attributes:
        metrics: by split.
        said: of each image, by split.
        stored_bytes: of the model's file; None where nothing but a simulation was made.
        arrays_bytes: the most that the backend's arrays held at once; None likewise, and where nobody counts.
        report: what else is known of it.
    """

    metrics: dict[str, Metrics]
    said: dict[str, Predictions]
    stored_bytes: int | None = None
    arrays_bytes: int | None = None
    report: dict[str, Any] = field(default_factory=dict)


def _model(run: Path, out: Path, splits: Sequence[SplitName], written: Written) -> Made:
    done = examine_splits(run, splits, model=out)
    metrics = {split: evaluation.metrics for split, evaluation in done.found.items()}
    stored = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    peak = load_backend(done.loaded.recipe.backend).peak_memory()
    return Made(metrics, done.said, stored, peak, {"sqnr_db": written.sqnr} if written.sqnr else {})


def _merge(run: Path, step: Step, out: Path, splits: Sequence[SplitName]) -> Made:
    written = merge_run(run, out, dequantize=step.merge == "dequantize", requantize=step.merge == "requantize")
    return _model(run, out, splits, written)


def _quantize(run: Path, step: Step, out: Path, splits: Sequence[SplitName]) -> Made:
    assert step.quantize is not None
    return _model(run, out, splits, quantize_model(run, out, step.quantize))


def _simulate(run: Path, step: Step, out: Path, splits: Sequence[SplitName]) -> Made:
    assert step.simulate is not None
    after = {split: simulate_run(run, [step.simulate], split).after[0] for split in splits}
    one = next(iter(after.values()))
    report = {
        "sqnr_db": {"weights": one.weights, "activations": one.activations},
        "images": one.images and asdict(one.images),
    }
    metrics: dict[str, Metrics] = {split: simulated.metrics for split, simulated in after.items()}
    said: dict[str, Predictions] = {split: simulated.said for split, simulated in after.items()}
    return Made(metrics, said, report=report)


def _reduce(run: Path, step: Step, out: Path, splits: Sequence[SplitName]) -> Made:
    done = examine_splits(run, splits, tokens=step.tokens)
    return Made({split: evaluation.metrics for split, evaluation in done.found.items()}, done.said)


MAKERS: dict[str, Callable[[Path, Step, Path, Sequence[SplitName]], Made]] = {
    "merge": _merge,
    "quantize": _quantize,
    "simulate": _simulate,
    "tokens": _reduce,
}
"""What makes a step of each kind of a run, with a model in a folder where it makes one, and measures it on splits."""


def step_id(run_id: str, step: Step) -> str:
    """Twelve hexadecimal digits: equal for equal steps of equal runs."""
    text = canonical([run_id, step.model_dump(mode="json", exclude={"name"}, exclude_none=True)])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def check_folder(folder: RunFolder, identity: str) -> None:
    """Raises UserError where a folder holds anything but this step, finished or begun."""
    if (result := folder.read_result()) is not None and result.get("run_id") != identity:
        raise UserError(
            f"{folder.path} holds something else ({result.get('run_id')}): choose another folder", arguments=("out",)
        )
    there = list(folder.path.iterdir()) if folder.path.exists() else []
    ours = (*unfinished(folder.path), folder.path / SUMS, folder.predictions)  # which are written before the result
    if result is None and (
        strange := [path.name for path in there if path not in ours and not path.name.startswith(".")]
    ):
        raise UserError(f"{folder.path} is not empty ({min(strange)}): choose another folder", arguments=("out",))


def unfinished(out: Path) -> list[Path]:
    """What an earlier attempt left in a step's folder: a model, or what one was being written in."""
    return [path for path in (out / MODEL, *out.glob(f".{MODEL}.*")) if path.exists()]


def derive(run: Path, step: Step, out: Path) -> dict[str, Any]:
    """Makes a step of the finished run in the folder ``run``, measures it, and writes ``out/result.json``.

    The splits are those that the run was measured on. Returns the result; it has the form of a run's, with what only
    training has left out. Raises UserError where it cannot be made.
    """
    folder, parent = RunFolder(out), RunFolder(run).read_result()
    if parent is None:
        raise UserError(f"{run} is not finished")
    check_folder(folder, step_id(parent["run_id"], step))
    if (done := folder.read_result()) is not None:
        return done
    with folder.locked():
        return _derived(run, parent, step, folder)


def _derived(run: Path, parent: dict[str, Any], step: Step, folder: RunFolder) -> dict[str, Any]:
    """The result of a step that is made anew."""
    out = folder.path
    for path in unfinished(out):
        shutil.rmtree(path)
    measured: tuple[SplitName, ...] = ("val", "test")
    outcome = MAKERS[step.kind](run, step, out / MODEL, [split for split in measured if parent["metrics"][split]])
    stored = outcome.stored_bytes
    result = {
        "run_id": step_id(parent["run_id"], step),
        **({"configuration_id": step_id(of, step)} if (of := parent.get("configuration_id")) else {}),
        "status": "finished",
        **{key: parent[key] for key in ("backend", "model", "method", "dataset", "seed")},
        **({"tokens": str(step.tokens)} if step.tokens else {}),
        "of": parent["run_id"],
        "step": step.model_dump(mode="json", exclude_none=True),
        "metrics": {"val": None, "test": None} | outcome.metrics,
        "stored": stored and {"base_bytes": stored, "adapter_bytes": 0, "total_bytes": stored},
        "memory": peak_facts(outcome.arrays_bytes, process_peak()),
        "report": outcome.report,
        "splits": parent["splits"],
        "notes": parent.get("notes", []),  # a run of before they were kept has none
        "environment": parent["environment"],
    }
    write_with_sums(out, {folder.predictions.name: encoded(outcome.said), folder.result.name: json_bytes(result)})
    return result
