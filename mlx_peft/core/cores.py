"""How many processors this process may use at once."""

from __future__ import annotations

import math
import os
from pathlib import Path

from mlx_peft.core.control_groups import around, text

PROCESSORS = Path("/sys/devices/system/cpu")


def free() -> int:
    """The machine's processors, less those that its affinity or its control group's quota leaves out; at least one."""
    return max(1, min([len(allowed()) or os.cpu_count() or 1, *map(math.ceil, _quotas())]))


def whole() -> int:
    """As ``free``, where two processors that are one core count as one: to multiply they have one unit between them."""
    siblings = [text(PROCESSORS / f"cpu{number}" / "topology" / "thread_siblings_list") for number in allowed()]
    return min([free(), len({*siblings}) if all(siblings) and siblings else free()])


def allowed() -> set[int]:
    """The processors that this process's affinity names; none where the system knows no affinity."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def _quotas() -> list[float]:
    """Processors that the control groups around this process may use. Where one says "max" or -1, it has no limit."""
    found = []
    for group, version in around("cpu"):
        files = ("cpu.max",) if version == 2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        found.append([word for name in files for word in text(group / name).split()])
    return [int(pair[0]) / int(pair[1]) for pair in found if len(pair) == 2 and pair[0].isdecimal()]
