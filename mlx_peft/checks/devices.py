"""What ``bench`` measured on one device, as a small file to share: nothing in it names a person or a machine."""

from __future__ import annotations

import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from convert.files import read_json
from mlx_peft.checks.bench import CONTENDERS, Settings, Timing
from mlx_peft.checks.busy import Others
from mlx_peft.core import control_groups, memory
from mlx_peft.core.errors import UserError
from mlx_peft.core.problems import in_a_line
from mlx_peft.core.versions import version_of

PACKAGES = ("mlx-peft", "mlx", "torch", "timm", "peft")
"""Whose versions are told."""
MOST_FILES = 10_000

Word = Annotated[str, Field(min_length=1, max_length=120)]
Number = Annotated[float, Field(gt=0, lt=1e15, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=10**9)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Speed(_Strict):
    """One contender's steps.

    Attributes:
        seconds: of the fastest step, and the median's.
        framework: its version, and what it computed on.
    """

    contender: Literal["mlx", "torch", "peft"]
    method: Word
    framework: Word
    images_per_second: Number
    seconds: Number
    median_seconds: Number
    arrays_bytes: Annotated[int, Field(ge=0, lt=2**50)] | None = None


class Bench(_Strict):
    """What was timed."""

    model: Word
    batch_size: Count
    rank: Count
    precision: Word
    compile: bool
    rounds: Count
    speeds: tuple[Speed, ...] = Field(max_length=100)


class Record(_Strict):
    """A file.

    Attributes:
        chip: what computed: the accelerator as its driver has it, or the processor.
        memory_gib: of the machine.
        others_share: of its processors' time that other processes took meanwhile.
    """

    kind: Literal["mlx-peft-bench"] = "mlx-peft-bench"
    chip: Word
    memory_gib: Annotated[int, Field(ge=0, le=10**6)]
    cpus: Count
    system: Word
    python: Word
    packages: dict[Word, Word] = Field(max_length=20)
    others_share: Annotated[float, Field(ge=0, le=1)]
    benchmarks: tuple[Bench, ...] = Field(max_length=100)


def record(found: Sequence[tuple[Settings, Sequence[Timing]]], others: Others) -> Record:
    """What was measured here. Contenders of a user's own are left out, whose names are the user's."""
    timings = [timing for _, several in found for timing in several]
    return Record(
        chip=chip(timing.version for timing in timings),
        memory_gib=round(memory.physical() / 2**30),
        cpus=others.processors,
        system=f"{platform.system()} {_version(platform.release())} {platform.machine()}",
        python=platform.python_version(),
        packages={name: version for name in PACKAGES if (version := version_of(name)) is not None},
        others_share=min(1.0, others.share),
        benchmarks=tuple(_bench(*one) for one in found),
    )


def _bench(settings: Settings, timings: Sequence[Timing]) -> Bench:
    given: dict[str, Any] = {
        name: getattr(settings, name) for name in ("model", "batch_size", "rank", "precision", "compile", "rounds")
    }
    speeds = [
        {
            "contender": timing.name,
            "method": timing.method,
            "framework": timing.version,
            "images_per_second": timing.images_per_second,
            "seconds": min(timing.seconds),
            "median_seconds": statistics.median(timing.seconds),
            "arrays_bytes": timing.arrays_bytes,
        }
        for timing in timings
        if timing.name in CONTENDERS
    ]
    return Bench.model_validate(given | {"speeds": speeds})


def chip(versions: Iterator[str]) -> str:
    """The accelerator that a framework's version names, as ``torch 2.5 (NVIDIA H100)``; else the processor."""
    for version in versions:
        match = re.search(r"\(([^()]+)\)$", version)
        if match and match[1].partition(",")[0] not in ("cpu", "gpu", "mps"):
            return match[1]
    return processor()


def processor() -> str:
    """The processor's name: ``Apple M2 Max``, ``AMD EPYC 7B13``."""
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    else:
        match = re.search(
            r"^model name\s*:\s*(.+)$", control_groups.text(control_groups.PROC / "cpuinfo"), re.MULTILINE
        )
        found = match[1].strip() if match else ""
    return found or platform.processor() or platform.machine() or "unknown"


def read(path: Path) -> Record:
    """A file that somebody shares. Raises UserError where it is none of these."""
    try:
        return Record.model_validate(read_json(path))
    except ValidationError as error:
        raise UserError(f"{path} is no file of a benchmark: {in_a_line(error, Record)}") from None


def read_all(folder: Path) -> dict[str, Record]:
    """The files of a folder, by name. Raises UserError where there is none, or one is something else."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise UserError(f"{folder} holds no file of a benchmark")
    if len(paths) > MOST_FILES:
        raise UserError(f"{folder} holds {len(paths):,} files, and {MOST_FILES:,} are read at most")
    return {path.stem: read(path) for path in paths}


def _version(release: str) -> str:
    """A system's version without its build, in which a company or a host may be named: ``6.18`` of ``6.18.4-acme``."""
    return ".".join(release.split(".")[:2]).partition("-")[0]
