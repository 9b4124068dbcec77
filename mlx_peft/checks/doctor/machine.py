"""The machine, as far as it decides what can be computed: its Python, memory, threads and open files."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, metadata

from packaging.specifiers import SpecifierSet

from mlx_peft.checks.doctor.finding import Finding, fault, fine, warning
from mlx_peft.core import cores, memory, threads
from mlx_peft.core.memory import gib

PYTHONS = ">=3.10,<3.14"
"""What is supported where no installed package says it."""
LITTLE = 4 * 2**30
"""Bytes of memory below which ViT-S is hard to train."""
MLX_NEEDS = 5 * 2**28
"""Bytes of address space: see ``mlx_peft/backend/blas.py``."""
FILES = 256
"""So many files open at once are few for processes that read images."""


def python() -> Iterator[Finding]:
    """Its version, and on a Mac that it is not translated."""
    said = f"Python {platform.python_version()} on {platform.system()} {platform.release()}, {platform.machine()}"
    wanted = PYTHONS
    with suppress(PackageNotFoundError):
        wanted = metadata("mlx-peft")["Requires-Python"] or PYTHONS
    if platform.python_version() not in SpecifierSet(wanted, prereleases=True):
        yield fault("python", f"{said}; supported: {wanted}", "make an environment with such a Python: uv venv -p 3.12")
    elif translated():
        yield fault(
            "python", f"{said}: a Python for Intel, translated, for which there is no MLX",
            "install Python for arm64 (python.org, Homebrew in /opt/homebrew, or uv), and make the environment anew",
        )  # fmt: skip
    else:
        yield fine("python", said)


def translated() -> bool:
    """Whether a Mac's arm64 processor runs this process as one for Intel."""
    if sys.platform != "darwin" or platform.machine() == "arm64":
        return False
    found = subprocess.run(["sysctl", "-n", "sysctl.proc_translated"], capture_output=True, text=True, check=False)
    return found.stdout.strip() == "1"


def room() -> Iterator[Finding]:
    """How much memory there is, and whether a limit lets MLX have too little of the address space."""
    there = memory.physical()
    said = f"{gib(there)} of memory"
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < MLX_NEEDS:
        yield fault(
            "memory", f"{said}, of whose addresses a process may have {gib(limit)}: MLX needs {gib(MLX_NEEDS)}",
            "ulimit -v unlimited",
        )  # fmt: skip
    elif there < LITTLE:
        yield warning(
            "memory", said,
            "take a small model, train.accumulate and train.gradient_checkpointing; an estimate says what a step holds",
        )  # fmt: skip
    else:
        yield fine("memory", said)


def computing() -> Iterator[Finding]:
    """How many threads compute."""
    there, told = cores.whole(), threads.told()
    said = f"{there} core{'s' * (there > 1)} free"
    number = told.get(threads.NUMBER, "")
    if number.isdecimal() and int(number) < there:
        yield warning(
            "threads", f"{said}, and {threads.NUMBER}={number} lets {number} compute",
            f"unset {threads.NUMBER}: a command takes a thread for each free core",
        )  # fmt: skip
    elif number.isdecimal() and int(number) > there:
        yield warning(
            "threads", f"{said}, and {threads.NUMBER}={number} has more threads compute, which wait for each other",
            f"unset {threads.NUMBER}",
        )  # fmt: skip
    else:
        yield fine("threads", said)


def files() -> Iterator[Finding]:
    """How many files a process may have open."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit != resource.RLIM_INFINITY and limit < FILES:
        yield warning("open files", f"a process may have {limit}", "ulimit -n 4096")
    else:
        yield fine("open files", "as many as wanted" if limit == resource.RLIM_INFINITY else f"up to {limit:,}")
