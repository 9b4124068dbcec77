"""What was found of a machine, for a person and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mlx_peft.checks.doctor.examine import passed
from mlx_peft.checks.doctor.finding import Finding
from mlx_peft.core.text import counted
from mlx_peft.core.version import VERSION

SIGNS = {"fine": "ok", "warning": "warning", "fault": "FAULT"}
WIDTH = 16


def line(found: Finding) -> str:
    """One finding, and below it what to do about it."""
    first = f"{SIGNS[found.level]:<8} {found.what:<{WIDTH}} {found.said}"
    return first if not found.remedy else f"{first}\n{'':<8} {'':<{WIDTH}} -> {found.remedy}"


def verdict(found: Sequence[Finding]) -> str:
    """How many faults and warnings there are."""
    numbers = {level: sum(one.level == level for one in found) for level in ("fault", "warning")}
    said = " and ".join(counted(number, level) for level, number in numbers.items() if number)
    return said or "nothing is wrong"


def facts(found: Sequence[Finding]) -> dict[str, Any]:
    """What ``doctor --json`` prints."""
    return {"version": VERSION, "passed": passed(found), "findings": [asdict(one) for one in found]}
