"""The folder of a run: what lies where, who may write in it, and whether it may be continued."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_peft.config.files import load
from mlx_peft.config.schema import Experiment
from mlx_peft.core import system, threads
from mlx_peft.core.errors import UserError
from mlx_peft.core.json_io import canonical, to_json
from mlx_peft.core.own import unfollowed
from mlx_peft.core.sums import SUMS, check_sum, write_with_sums
from mlx_peft.core.versions import version_of
from mlx_peft.core.writing import disk_errors

FREE = (
    *("data.root", "data.threads", "data.workers", "data.download", "data.cache.gigabytes", "data.cache.folder"),
    *("train.log_every", "train.checkpoint_every", "track", "device", "train.compile"),
)
"""These settings may differ when a run is continued: they decide neither the parameters nor the metrics, but for the
rounding of another device or program."""

LONGER = ("train.epochs", "train.early_stopping")
"""These settings say how long a run is."""

CHANGEABLE = (*("train.optimizer.lr", "train.clip_norm", "train.precision", "data.unreadable"), *LONGER)
"""These settings may be changed when a run is continued, of a finished one together with one of ``LONGER``: the result
says from which step on, and the run has another id."""

UNTESTED = "untested"
"""A result has this key where there is a test split and no image of it was evaluated: the run was made to choose by."""

Record = dict[str, float]
"""One line of ``metrics.jsonl``: numbers by their names."""


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run. Making one touches nothing."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def predictions(self) -> Path:
        """What it said of each image: see ``training.predictions``."""
        return self.path / "predictions.npz"

    @property
    def environment(self) -> Path:
        return self.path / "env.json"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def last(self) -> Path:
        return self.path / "checkpoint" / "last.safetensors"

    @property
    def previous(self) -> Path:
        """The checkpoint before the last, for when that is damaged."""
        return self.path / "checkpoint" / "previous.safetensors"

    @property
    def best(self) -> Path:
        return self.path / "checkpoint" / "best.safetensors"

    @property
    def previous_best(self) -> Path:
        """What was best before, which the checkpoint before the last may name."""
        return self.path / "checkpoint" / "previous-best.safetensors"

    @property
    def texts(self) -> tuple[str, ...]:
        """Names of the files whose digests stand in ``SHA256SUMS.txt``, from before they are written."""
        return tuple(path.name for path in (self.config, self.metrics, self.result, self.environment, self.predictions))

    def check_sum(self, path: Path) -> bool:
        """Whether there is a digest of one of ``texts``. Raises UserError where it is another one."""
        return check_sum(path, self.texts)

    def read_config(self) -> Experiment:
        """The run's experiment. Raises UserError where ``config.yaml`` is not as it was written."""
        self.check_sum(self.config)
        return load(self.config)

    def read_result(self) -> dict[str, Any] | None:
        """``result.json``, or None where the run is not finished. Raises UserError where it is damaged."""
        if not self.result.exists():
            return None
        remedy = "delete it, and resuming the run makes it again from the last checkpoint"
        try:
            self.check_sum(self.result)
            result = json.loads(self.result.read_text("utf-8"))
        except UserError as error:
            raise UserError(f"{error}; or {remedy}") from error
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{self.result} cannot be read ({error}): {remedy}") from error
        if not isinstance(result, dict) or not isinstance(result.get("run_id"), str):
            raise UserError(f"{self.result} is no result of a run, which has a run_id: {remedy}")
        splits = result.get("splits") or {}
        if not isinstance(splits, dict) or not all(
            split is None or isinstance(split, dict) for split in splits.values()
        ):
            raise UserError(f"{self.result} is no result of a run: its splits have no size and digest each; {remedy}")
        return result

    def check(self, experiment: Experiment, *, resume: bool, changeable: Collection[str] = ()) -> None:
        """Raises UserError where ``experiment`` may not be run here. Writes nothing.

        ``changeable`` are keys that may differ from those of an unfinished run, and of a finished one that is to be
        longer.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file: a run needs a folder")
        if self.config.exists() and resume:
            before = self.read_config()
            ended = self.result.exists() and not longer(before, experiment)
            check_same(before, experiment, self.config, () if ended else changeable)
        elif self.config.exists():
            if self.result.exists():
                raise UserError(
                    f"{self.path} already holds a finished run: choose another folder, or replace it",
                    arguments=("out", "overwrite"),
                )
            raise UserError(
                f"{self.path} already holds an unfinished run: continue it, choose another folder, or replace it",
                arguments=("resume", "out", "overwrite"),
            )
        elif self.path.exists() and any(
            not entry.name.startswith(".") and entry.name != SUMS for entry in self.path.iterdir()
        ):
            raise UserError(f"{self.path} is not empty and holds no run: choose another folder", arguments=("out",))

    def in_use(self) -> bool:
        """Whether another process has the folder, as ``locked`` gives it."""
        try:
            lock = open(self.path / ".lock", "rb")  # noqa: SIM115
        except FileNotFoundError:
            return False
        with disk_errors(self.path), lock:
            try:
                system.lock(lock.fileno())
            except BlockingIOError:
                return True
        return False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder and keeps it for this process until the block, or the process however it ends, is over.

        Raises UserError where another process has it. Removes an adapter that a killed process left half-written.
        """
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / ".lock", "ab", opener=unfollowed)  # noqa: SIM115  what is in it stays
        with lock:
            with disk_errors(self.path):
                try:
                    system.lock(lock.fileno())
                except BlockingIOError as error:
                    raise UserError(
                        f"{self.path} is in use by another process: wait for it, or choose another folder",
                        arguments=("out",),
                    ) from error
                for unfinished in self.path.glob(f".{self.adapter.name}.*"):
                    shutil.rmtree(unfinished)
            yield


def is_untested(result: Mapping[str, Any]) -> bool:
    """Whether a finished run has yet to be tested."""
    return bool(result.get(UNTESTED))


def json_bytes(value: Mapping[str, Any]) -> bytes:
    return f"{to_json(value, ascii=True)}\n".encode()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON file whole, and its digest beside it."""
    write_with_sums(path.parent, {path.name: json_bytes(value)})


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"train": {"epochs": 3}}`` as ``{"train.epochs": 3}``."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {f"{prefix}{name}": value}
    return flat


def binding(experiment: Experiment) -> dict[str, Any]:
    """What of an experiment decides its outcome, by dotted key."""
    keys = flatten(experiment.model_dump(mode="json"))
    return {key: value for key, value in keys.items() if key not in FREE}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys in which two flat trees differ, with what each has; None for what it has not."""
    return {key: (before.get(key), now.get(key)) for key in {**before, **now} if before.get(key) != now.get(key)}


def check_same(old: Experiment, new: Experiment, where: Path, changeable: Collection[str] = ()) -> None:
    """Raises UserError that names every key, but for those, in which a run differs from the one it is to continue."""
    differing = differences(binding(old), binding(new))
    if wrong := {key: pair for key, pair in differing.items() if key not in changeable}:
        lines = [f"  {key}: {there} there, {here} now" for key, (there, here) in wrong.items()]
        raise UserError(
            f"the run cannot be continued with another configuration than its own, {where}:\n" + "\n".join(lines)
        )


def longer(before: Experiment, now: Experiment) -> bool:
    """Whether an experiment asks for more epochs, or for another end, than a run was made with."""
    waits = before.train.early_stopping != now.train.early_stopping
    return now.train.epochs > before.train.epochs or (waits and now.train.epochs == before.train.epochs)


def run_id(experiment: Experiment, splits: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits: equal for equal experiments on equal data, wherever they run."""
    text = canonical([binding(experiment), splits])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def configuration_id(experiment: Experiment, splits: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits: equal for experiments that differ in their seed alone, on equal data."""
    settings = {key: value for key, value in binding(experiment).items() if key != "seed"}
    return hashlib.sha256(canonical([settings, splits]).encode()).hexdigest()[:12]


def changed_id(run_id: str, changes: Sequence[Mapping[str, Any]]) -> str:
    """The id of a run in which something was changed on the way: that of no run in one piece."""
    text = canonical([run_id, *changes])
    return hashlib.sha256(text.encode()).hexdigest()[:12] if changes else run_id


def environment(framework: str, processes: int = 1) -> dict[str, str]:
    """Versions, platform, processes and threads; nothing that names a person or a machine."""
    facts = {"python": platform.python_version(), "system": platform.platform(), "machine": platform.machine()}
    facts |= {"cpus": str(os.cpu_count()), **threads.facts(), "framework": framework}
    if processes > 1:
        facts["processes"] = str(processes)
    for package in ("mlx-peft", "numpy", "pillow", "safetensors", "simplejpeg"):
        if (version := version_of(package)) is not None:
            facts[package] = version
    return facts


LARGEST_RECORDED = 1e39
"""No recorded number is larger: each was a float32 first, and this is more than every float32."""


def read_metrics(path: Path) -> list[Record]:
    """The records so far. Raises UserError where a line is damaged, or is no record of numbers."""
    try:
        records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    for number, record in enumerate(records, start=1):
        values: list[Any] = [*record.values()] if isinstance(record, dict) else [None]
        if not all(type(value) in (int, float) and -LARGEST_RECORDED <= value <= LARGEST_RECORDED for value in values):
            raise UserError(f"{path}: line {number} is no record of numbers")
    return records
