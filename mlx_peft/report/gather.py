"""The finished runs below a folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_peft.config.errors import UserError


@dataclass(frozen=True)
class Run:
    """A finished run: its path from where it was looked for, its ``result.json``, its ``metrics.jsonl``."""

    name: str
    result: dict[str, Any]
    metrics: tuple[dict[str, float], ...]

    def value(self, dotted: str) -> Any:
        """The value at ``metrics.test.top1`` of the result; None where it is not there."""
        node: Any = self.result
        for key in dotted.split("."):
            node = node.get(key) if isinstance(node, dict) else None
        return node

    def curve(self, key: str) -> list[tuple[int, float]]:
        """What was recorded under a key at the end of each epoch, with the epoch."""
        return [(int(record["epoch"]), record[key]) for record in self.metrics if key in record and "epoch" in record]


def finished_runs(folder: Path) -> list[Run]:
    """Every finished run below a folder, the folder itself included, in the order of their paths.

    Raises UserError where there is none, and where a file of one cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    runs = [run for path in sorted(folder.rglob("result.json")) if (run := _read(path, folder))]
    if not runs:
        raise UserError(f"no finished run below {folder} (a finished run has a result.json)")
    return runs


def unfinished_runs(folder: Path) -> list[Path]:
    """The folders of runs that were begun and have no result."""
    begun = (path.parent for path in sorted(folder.rglob("metrics.jsonl")))
    return [path for path in begun if not (path / "result.json").exists()]


def _read(path: Path, folder: Path) -> Run | None:
    """The run of a ``result.json``; None for a file of that name that is not a run's."""
    try:
        result = json.loads(path.read_text("utf-8"))
        if not isinstance(result, dict) or "run_id" not in result:
            return None
        log = path.with_name("metrics.jsonl")
        lines = log.read_text("utf-8").splitlines() if log.exists() else []
        metrics = tuple(json.loads(line) for line in lines)
    except (OSError, ValueError) as error:
        raise UserError(f"{path.parent} is not a readable run: {error}") from None
    name = path.parent.relative_to(folder).as_posix()
    return Run(folder.resolve().name if name == "." else name, result, metrics)
