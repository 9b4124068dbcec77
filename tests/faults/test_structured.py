"""Documents with one hostile value, through the commands that read them: an answer or one message, in bounded time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("fuzz_structured.py")
QUICK = (42, 84)
"""The cases of every run, two for each kind of document, in one backend: what reads them is the same for both. The
slow test has them too, in each."""
ALL = 5000
"""The cases of the slow test, in each of them."""

GROWN_MIB = 1024
"""How much more memory than before a case may take, of documents of some kilobytes."""

NEVER_REFUSED = {"adapter_config.json", "checkpoint, facts", "checkpoint, header"}
"""Where a change need not end a command: what stands in a file for other readers, as ours look elsewhere; and a
checkpoint, of which the one before is gone on from."""


def worker(backend: str, first: int, last: int, folder: Path, *options: str) -> tuple[list[dict[str, Any]], int | None]:
    """What came of the cases that a process got through, and the one in which it died, if it did."""
    path = os.pathsep.join([str(SCRIPT.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])  # of sketching
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, SCRIPT, backend, str(first), str(last), str(folder), *options],
        capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL, cwd=folder,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    started = [int(line.split()[1]) for line in lines if line.startswith("start ")]
    found = [json.loads(line) for line in lines if line.startswith("{")]
    assert started, done.stderr[-3000:]
    return found, started[-1] if len(found) < len(started) else None


def fuzzed(backend: str, first: int, last: int, folder: Path, *options: str) -> None:
    """Raises AssertionError with every case that was neither answered nor refused as it should be."""
    found: list[dict[str, Any]] = []
    faults: list[str] = []
    while first < last:
        more, died = worker(backend, first, last, folder, *options)
        found += more
        first = last if died is None else died + 1
        if died is not None:
            faults.append(f"case {died}: the process died, or took too long")
    for case in found:
        if "fault" in case:
            faults.append(f"case {case['number']} ({case['kind']}): {case['fault']}")
        elif case["grown_mib"] > GROWN_MIB:
            faults.append(f"case {case['number']} ({case['kind']}): {case['grown_mib']:.0f} MiB more than before")
    assert not faults, f"{len(faults)} of the cases before {last}:\n" + "\n".join(faults[:20])
    statuses = {kind: {case["status"] for case in found if case["kind"] == kind} for kind in {c["kind"] for c in found}}
    assert len(statuses) == 21
    unheard = {kind for kind, seen in statuses.items() if 2 not in seen} - NEVER_REFUSED
    assert not unheard, f"changes that nothing notices test nothing: {unheard}"


def test_some_hostile_documents_are_answered_or_refused(tmp_path: Path) -> None:
    fuzzed("mlx", *QUICK, tmp_path, "sketched")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_thousands_of_hostile_documents_are_answered_or_refused(backend: str, tmp_path: Path) -> None:
    fuzzed(backend, 0, ALL, tmp_path)
