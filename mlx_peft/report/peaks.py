"""Peaks of memory in a result: what arrays held is never set beside what a whole process did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx_peft.report.format import MISSING, size


def told_apart(result: Mapping[str, Any]) -> dict[str, Any]:
    """The result, its ``memory`` with ``arrays_bytes`` and ``process_bytes`` where it is of before there were both.

    It had one number then: of arrays from MLX and from an accelerator, of the process from PyTorch on a CPU.
    """
    memory, environment = result.get("memory"), result.get("environment")
    if not isinstance(memory, dict) or memory.keys() & {"arrays_bytes", "process_bytes"}:
        return dict(result)
    framework = str(environment.get("framework", "")) if isinstance(environment, dict) else ""
    arrays = result.get("backend") == "mlx" or (framework != "" and "(cpu" not in framework)
    kind = "arrays_bytes" if arrays else "process_bytes"
    return {**result, "memory": {**memory, kind: memory.get("peak_bytes")}}


def words(result: Mapping[str, Any]) -> str:
    """``24.1 MB of arrays, 264.1 MB of the process``"""
    memory = told_apart(result).get("memory") or {}
    kinds = {"arrays": memory.get("arrays_bytes"), "the process": memory.get("process_bytes")}
    return ", ".join(f"{size(peak)} of {kind}" for kind, peak in kinds.items() if peak is not None) or MISSING
