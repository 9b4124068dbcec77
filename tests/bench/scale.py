"""How what a long run or a large set needs grows: each case at 1, 10 and 100 times, in time and memory; and a soak.

    python tests/bench/scale.py > experiments/results/scale.md   # all of it: 20 minutes of two processors
    python tests/bench/scale.py splits report                    # some cases
    python tests/bench/scale.py soak                             # 20,000 steps of each backend

Progress is told on standard error. Every size of a case is a process of its own, which may have 3 GiB of address space.
Memory is the peak beyond what the process had before. What is made on the disk is removed.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from growing import CASES, TIMES
from soak import soak

ADDRESS_SPACE = 3 * 2**30
LONGEST = 1200.0
"""Seconds after which a size of a case is given up."""


def measured_here(case: str, times: int, folder: Path) -> None:
    """Prints a line for each part of a case, at a size."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    unit = 1 if sys.platform == "darwin" else 1024
    os.environ["XDG_CACHE_HOME"] = str(folder)
    for what, work in CASES[case](folder, times):
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        clock = time.perf_counter()
        said = work()
        seconds, wall = time.process_time() - began, time.perf_counter() - clock
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        told = said if isinstance(said, str) else ""
        print(json.dumps([what, seconds, wall, (peak - before) * unit, peak * unit, told]), flush=True)


def measured(case: str, times: int) -> tuple[list[list[Any]], str]:
    """The lines of a case, at a size, in a process and a folder of its own; and how it failed, if it did."""
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        command = [sys.executable, __file__, case, str(times), folder]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            output, _ = process.communicate(timeout=LONGEST)
            failed = f"status {process.returncode}" if process.returncode else ""
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            failed = f"not done after {LONGEST:.0f} seconds"
        return [json.loads(line) for line in output.splitlines()], failed


def table(cases: Sequence[str]) -> Iterator[str]:
    """The lines of the table, and what was told."""
    yield "| what | CPU seconds | times a tenth of the size | seconds by the clock | memory added | peak memory |"
    yield "|---|---:|---:|---:|---:|---:|"
    told = []
    for case in cases:
        smaller: list[float] = []
        for times in TIMES:
            lines, failed = measured(case, times)
            for number, (what, seconds, wall, more, peak, said) in enumerate(lines):
                grown = f"{seconds / smaller[number]:.1f}" if number < len(smaller) and smaller[number] > 0.02 else ""
                sizes = f"{more / 2**20:,.0f} MiB | {peak / 2**20:,.0f} MiB"
                yield f"| {what} | {seconds:.2f} | {grown} | {wall:.2f} | {sizes} |"
                told += [f"- {what}: `{said}`"] if said else []
            smaller = [seconds for _, seconds, *_ in lines]
            if failed:
                yield f"| **{case}, {times} times: failed, {failed}** | | | | | |"
    yield from ["", *told] if told else []


def machine() -> str:
    load = " ".join(f"{average:.1f}" for average in os.getloadavg())
    kind = f"{platform.system()} {platform.release().partition('-')[0]}, {platform.machine()}"
    return f"{kind}, {os.cpu_count()} processors, Python {platform.python_version()}, load {load}"


ABOUT = """
Seconds of the processor (CPU) say how it grows; those by the clock are the machine's at that load. "Times a tenth of
the size": how many times the CPU seconds of the same case with a tenth of the images, rows or runs. What grows as n has
10 there, what grows as n log n 12 to 13; it is left out where the smaller case took less than 0.02 seconds. "Memory
added" is what a case took beyond what its process had before; the peak is that of the process, which may have 3 GiB of
address space. ImageNet's layout is made of hard links to 2,000 JPEGs of 96 x 80 pixels, whose folders the system has in
memory; `data check` has two threads.
"""


def main(cases: Sequence[str]) -> int:
    """Prints what is asked for as Markdown. Returns 1 where a case failed, 2 where there is none of a name."""
    if unknown := [case for case in cases if case not in (*CASES, "soak")]:
        print(f"there is no case {unknown[0]!r}: {', '.join((*CASES, 'soak'))}", file=sys.stderr)
        return 2
    began, failed = time.monotonic(), False

    def tell(line: str) -> None:
        nonlocal failed
        failed = failed or "failed, " in line
        print(line, flush=True)
        print(f"{(time.monotonic() - began) / 60:5.1f} min  {line}", file=sys.stderr, flush=True)

    named = " ".join(["OMP_NUM_THREADS=1 python tests/bench/scale.py", *sys.argv[1:]])
    tell(f"# How it grows\n\n```\n{named}\n```\n\n{machine()} at the beginning.")
    tell(ABOUT)
    for line in table([case for case in cases if case != "soak"]):
        tell(line)
    if "soak" in cases:
        tell("\n## A long run in one process\n")
        for line in soak():
            tell(line)
    tell(f"\n{machine()} at the end, after {(time.monotonic() - began) / 60:.0f} minutes.")
    return int(failed)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    if len(sys.argv) == 4 and sys.argv[2].isdigit():
        measured_here(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
    else:
        raise SystemExit(main(sys.argv[1:] or [*CASES, "soak"]))
