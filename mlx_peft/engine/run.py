"""The folder of a run: what lies where, who may write in it, and whether it may be continued."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mlx_peft.config.files import load
from mlx_peft.config.schema import Experiment
from mlx_peft.core.errors import UserError
from mlx_peft.core.own import unfollowed
from mlx_peft.core.writing import disk_errors, write_whole

FREE = (
    *("data.root", "data.threads", "data.download", "data.cache.gigabytes", "data.cache.folder"),
    *("train.log_every", "train.checkpoint_every", "track"),
)
"""What may differ when a run is continued: it decides neither the parameters nor the metrics."""

Record = dict[str, float]
"""A line of ``metrics.jsonl``."""


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
    def environment(self) -> Path:
        return self.path / "env.json"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def last(self) -> Path:
        return self.path / "checkpoint" / "last.safetensors"

    @property
    def best(self) -> Path:
        return self.path / "checkpoint" / "best.safetensors"

    def read_result(self) -> dict[str, Any] | None:
        """``result.json``, or None where the run is not finished. Raises UserError where it is damaged."""
        if not self.result.exists():
            return None
        try:
            result: dict[str, Any] = json.loads(self.result.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{self.result} cannot be read: {error}") from error
        return result

    def check(self, experiment: Experiment, *, resume: bool) -> None:
        """Raises UserError where ``experiment`` may not be run here. Writes nothing."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file: a run needs a folder")
        if self.config.exists():
            if not resume:
                if self.result.exists():
                    raise UserError(f"{self.path} already holds a finished run: choose another folder with --out")
                raise UserError(
                    f"{self.path} already holds an unfinished run: continue it with --resume, or choose another folder "
                    "with --out"
                )
            check_same(load(self.config), experiment, self.config)
        elif self.path.exists() and any(not entry.name.startswith(".") for entry in self.path.iterdir()):
            raise UserError(f"{self.path} is not empty and holds no run: choose another folder with --out")

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
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise UserError(
                        f"{self.path} is in use by another process: wait for it, or choose another --out"
                    ) from error
                for unfinished in self.path.glob(f".{self.adapter.name}.*"):
                    shutil.rmtree(unfinished)
            yield


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_whole(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


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


def check_same(old: Experiment, new: Experiment, where: Path) -> None:
    """Raises UserError that names every key in which a run differs from the one it is to continue."""
    before, now = binding(old), binding(new)
    differing = [key for key in before | now if before.get(key) != now.get(key)]
    if differing:
        lines = [f"  {key}: {before.get(key)} there, {now.get(key)} now" for key in differing]
        raise UserError(
            f"the run cannot be continued with another configuration than its own, {where}:\n" + "\n".join(lines)
        )


def run_id(experiment: Experiment, splits: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits: equal for equal experiments on equal data, wherever they run."""
    text = json.dumps([binding(experiment), splits], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def environment(framework: str) -> dict[str, str]:
    """Versions and platform; nothing that names a person or a machine."""
    facts = {"python": platform.python_version(), "system": platform.platform(), "machine": platform.machine()}
    facts |= {"cpus": str(os.cpu_count()), "framework": framework}
    for package in ("mlx-peft", "numpy", "pillow", "safetensors", "simplejpeg"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return facts


class MetricsFile:
    """``metrics.jsonl``, open for appending from a known length on."""

    def __init__(self, path: Path, length: int) -> None:
        """Cuts off what lies beyond ``length`` bytes. Raises UserError where there is less."""
        with disk_errors(path):
            self._file = open(path, "ab")  # noqa: SIM115
        if self._file.tell() < length:
            raise UserError(f"{path} is shorter than the checkpoint says: someone changed it; the run cannot go on")
        self._file.truncate(length)
        self._file.seek(length)  # truncating moves no position, and that is what sync returns
        self._path = path

    def write(self, record: Record) -> None:
        with disk_errors(self._path):
            self._file.write((json.dumps(record, allow_nan=False) + "\n").encode())
            self._file.flush()

    def sync(self) -> int:
        """Puts all on the disk and returns the length in bytes."""
        with disk_errors(self._path):
            os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        with disk_errors(self._path):  # which tries again to write what did not fit
            self._file.close()


LARGEST_RECORDED = 1e39
"""Above every float32, which what is recorded began as."""


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
