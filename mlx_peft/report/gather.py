"""The finished runs below a folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_peft.core.errors import UserError


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
    paths = [path.parent for path in sorted(folder.rglob("result.json"))]
    runs = [run for path in paths if (run := read_run(path, _name(path, folder)))]
    if not runs:
        raise UserError(f"no finished run below {folder} (a finished run has a result.json)")
    return runs


def unfinished_runs(folder: Path) -> list[Path]:
    """The folders of runs that were begun and have no result."""
    begun = (path.parent for path in sorted(folder.rglob("metrics.jsonl")))
    return [path for path in begun if not (path / "result.json").exists()]


def read_run(folder: Path, name: str) -> Run | None:
    """The finished run in a folder, under a name; None where its ``result.json`` is not a run's.

    Raises UserError where a file of it cannot be read.
    """
    try:
        result = json.loads((folder / "result.json").read_text("utf-8"))
        if not isinstance(result, dict) or "run_id" not in result:
            return None
        log = folder / "metrics.jsonl"
        lines = log.read_text("utf-8").splitlines() if log.exists() else []
        metrics = tuple(json.loads(line) for line in lines)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is not a readable run: {error}") from None
    return Run(name, result, metrics)


def _name(path: Path, folder: Path) -> str:
    """A run's path from the folder where it was looked for."""
    name = path.relative_to(folder).as_posix()
    return folder.resolve().name if name == "." else name
