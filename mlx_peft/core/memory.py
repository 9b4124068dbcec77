"""What memory this process can have, so that what needs more is refused in words rather than killed."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping

from mlx_peft.core import control_groups
from mlx_peft.core.errors import UserError

if sys.platform != "win32":
    import resource


def available() -> int:
    """The most bytes that this process could have, whatever else runs: more than that nothing could give it.

    The machine's memory, or its control group's share, and the swap beside it; no more than a limit of the process
    (``ulimit -v``, ``-d``). macOS makes swap as it is needed: as much again is counted.
    """
    swap = _installed() if sys.platform == "darwin" else _swap()
    return min([physical() + swap, *_limits()])


def physical() -> int:
    """The bytes of the machine's memory, or of its control group's share."""
    return min([_installed(), *_groups()])


def require(parts: Mapping[str, int], what: str, own: int | None = None, advice: str = "") -> None:
    """Raises UserError where the parts are more bytes than there are.

    Args:
        parts: a lower bound of what is held at once, by what for: so that nothing is refused that would run.
        what: it is for, at the head of the message.
        own: bytes of an accelerator that has memory of its own: both count as one.
        advice: what would need less, at the end of the message.
    """
    there = available() + (own or 0)
    needed = sum(parts.values())
    if needed > there:
        by_part = ", ".join(f"{name} {gib(size)}" for name, size in parts.items() if size)
        beside = "" if own is None else f", {gib(own)} of them the accelerator's"
        raise UserError(
            f"{what} needs at least {gib(needed)} of memory ({by_part}), and there are {gib(there)} here{beside}"
            + (f"; {advice}" if advice else "")
        )


def process_peak() -> int:
    """The most bytes of the machine's memory that this process ever held at once."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux's ru_maxrss begins with that of the process that started this one.
    match = re.search(r"^VmHWM:\s*(\d+) kB", control_groups.text(control_groups.PROC / "self" / "status"), re.MULTILINE)
    return 1024 * (int(match[1]) if match else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def peak_facts(arrays: int | None, process: int) -> dict[str, int | None]:
    """The section ``memory`` of a ``result.json``, in bytes, so that what is compared is of one kind.

    ``arrays_bytes`` is what a framework's arrays held at once, None where it does not count them; ``process_bytes``
    what the whole process did; ``peak_bytes`` the first of them that there is.
    """
    return {"peak_bytes": process if arrays is None else arrays, "arrays_bytes": arrays, "process_bytes": process}


def gib(size: int) -> str:
    """Bytes for a person: ``3.2 GiB``, of small sizes ``120 MiB``."""
    if size < 2**30:
        return f"{max(round(size / 2**20), 1):,} MiB"
    return f"{size / 2**30:,.1f} GiB" if size < 100 * 2**30 else f"{round(size / 2**30):,} GiB"


def _installed() -> int:
    if sys.platform == "win32":
        import psutil

        return int(psutil.virtual_memory().total)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _swap() -> int:
    match = re.search(r"^SwapTotal:\s*(\d+) kB", control_groups.text(control_groups.PROC / "meminfo"), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def _groups() -> list[int]:
    """The limits of the control groups that the process is in, and of those around them; versions 1 and 2."""
    files = {1: "memory.limit_in_bytes", 2: "memory.max"}
    limits = [control_groups.text(group / files[version]) for group, version in control_groups.around("memory")]
    return [int(limit) for limit in limits if limit.strip().isdecimal()]  # "max" is none


def _limits() -> list[int]:
    if sys.platform == "win32":
        return []
    kinds = (getattr(resource, name, None) for name in ("RLIMIT_AS", "RLIMIT_DATA"))
    soft = [resource.getrlimit(kind)[0] for kind in kinds if kind is not None]
    return [limit for limit in soft if limit != resource.RLIM_INFINITY]
