"""Opens documents with one hostile value, through the commands that read them: run by test_structured.py.

    python tests/faults/fuzz_structured.py BACKEND FIRST LAST FOLDER [sketched]

In one process, so that thousands of cases need minutes, and in one that cannot import the other backend's framework:
training, evaluating, merging and all else that is done here needs one. Of each case from FIRST on, up to LAST, two
lines are printed: ``start NUMBER``, and JSON with what came of it. A case is a function of its number alone: to see it
again, give that. One that takes too long ends the process, by the kernel's own clock: no code of ours need be reached.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import sys
import warnings
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import typer.testing
from doors import Place, kinds
from sketching import sketched
from typer.main import get_command

from mlx_peft.core import memory
from mlx_peft.report import evaluation

SEED = 20_000
SECONDS, AT_MOST = 10, 300
"""Of the processor's time that a case may take; and of anybody's, where it waits for what never comes."""

MACHINE = 2**29
"""Bytes that the machine is said to have: a file that asks for a large model is right, but is no use here."""

SPARE = 4 * 2**30
"""Bytes of addresses beyond those in use: what a fault may take before it is one, so that it stops nobody else."""

OTHERS = {"mlx": ("torch", "torchvision", "timm", "peft", "transformers"), "torch": ("mlx", "mlx.core", "mlx.data")}
"""What must not be needed, by backend."""

STATUSES = {0, 2}
UNWANTED = ("Traceback", "errors.pydantic.dev", "this needs more memory than there is")
"""In an answer; the last is of what was not added up beforehand."""

CHECKED = {0, 1, 2}
"""Of ``data check``, which answers 1 for a set that is not sound."""

DRAWN = {"run, result"}
"""Where what is drawn was changed. Elsewhere pictures are empty, as they would take most of the time."""

LONGEST_OUTPUT = 200_000
"""Characters: a report of a small run has hundreds."""


def peak_mib() -> float:
    """The most memory since the last reset; where the kernel has no such line, since the start."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 2**10  # type: ignore[index]


def reset_peak() -> None:
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")


draw = evaluation.pictures


def undrawn(figure: object, dpi: int) -> dict[str, bytes]:
    return {}


def case(place: Place, number: int) -> dict[str, Any]:
    """What came of a case: its kind, status and fault, if it has one, and how much memory it took."""
    rng = np.random.default_rng([SEED, number])
    place.fresh()
    table = kinds(place, rng)
    kind = list(table)[number % len(table)]
    path, change, door = table[kind]
    change(path, rng)
    evaluation.pictures = draw if kind in DRAWN else undrawn
    reset_peak()
    before = peak_mib()
    answer = door()
    found: dict[str, Any] = {"number": number, "kind": kind, "status": answer.status, "grown_mib": peak_mib() - before}
    allowed = CHECKED if kind == "table" else STATUSES
    if answer.error is not None:
        found["fault"] = answer.error
    elif answer.status not in allowed or any(word in answer.output for word in UNWANTED):
        found["fault"] = f"status {answer.status}: {answer.output[-1500:]}"
    elif len(answer.output) > LONGEST_OUTPUT:
        found["fault"] = f"{len(answer.output):,} characters of output: {answer.output[:300]}"
    return found


class Missing:
    """Finds modules as if some were not installed."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def find_spec(self, name: str, *_: object) -> None:
        if name in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def main(backend: str, first: int, last: int, folder: Path) -> None:
    sys.meta_path.insert(0, Missing(OTHERS[backend]))
    assert not {*OTHERS[backend]} & sys.modules.keys()
    warnings.simplefilter("ignore")
    typer.testing._get_command = cache(get_command)  # else it makes every command of the program anew for each case
    evaluation.pictures = undrawn
    place = Place(folder, backend)
    memory.available = lambda: MACHINE  # type: ignore[assignment]
    limit_addresses()
    for number in range(first, last):
        print(f"start {number}", flush=True)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, AT_MOST)
        print(json.dumps(case(place, number)), flush=True)


def limit_addresses() -> None:
    status = Path("/proc/self/status")
    if status.exists():  # macOS keeps no such limit
        used = int(re.search(r"VmSize:\s+(\d+) kB", status.read_text())[1]) * 1024  # type: ignore[index]
        resource.setrlimit(resource.RLIMIT_AS, (used + SPARE, resource.RLIM_INFINITY))


if __name__ == "__main__":
    with sketched() if sys.argv[5:] else nullcontext():
        main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
