"""What ``bench inference`` measures, as Markdown tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

from mlx_peft.checks.bench_inference import MERGED, MIXED, Report, Timing, share
from mlx_peft.checks.busy import Others
from mlx_peft.report.blocks import Columns

UNMEASURED = "-"
KINDS: tuple[Literal["wall", "process"], ...] = ("wall", "process")
NUMBERS = (
    "adapters", "images/s", "of merged", "of merged, process time", "of peft's mixed", "of peft's, process time",
    "a switch, ms",
)  # fmt: skip
GROWN = "A process that has freed memory uses it again, and may grow by less than its adapters have."
MEMORY = ("adapters in memory", "own bytes, MiB", "the process grew by, MiB", "ratio")


def inference(reports: Sequence[Report], others: Others) -> str:
    """The tables of all sizes, and below them what the adapters in memory cost."""
    return "\n\n".join(part for report in reports for part in (_times(report, others), _memory(report)))


def _times(report: Report, others: Others) -> str:
    settings = report.settings
    setting = (
        f"{settings.model} at {settings.image_size} px, batches of {settings.batch_size}, LoRA r {settings.rank} on "
        f"all linear layers, float32; {settings.rounds} rounds in turn, adapters dealt out anew in each, "
        f"after a batch that does not count; {others}; "
        "images/s are the fastest round's, shares the medians of the rounds"
    )
    table = Columns(("contender", *NUMBERS), NUMBERS).table(_cells(report, timing) for timing in report.timings)
    return f"{setting}\n\n{table}"


def _cells(report: Report, timing: Timing) -> list[str]:
    beside = {(other.framework, other.way): other for other in report.timings if other.adapters == timing.adapters}
    merged = beside.get((timing.framework, MERGED)) or beside.get(("torch", MERGED))
    theirs = beside.get(("peft", MIXED))
    shares = [
        UNMEASURED if other is None else f"{share(timing, other, kind):.2f}"
        for other in (merged, theirs)
        for kind in KINDS
    ]
    switch = f"{1000 * statistics.median(timing.switches):.2f}" if timing.switches else UNMEASURED
    speed = report.settings.batch_size / min(timing.wall)
    return [f"{timing.framework}, {timing.way}", str(timing.adapters), f"{speed:.1f}", *shares, switch]


def _memory(report: Report) -> str:
    rows = [
        [
            held.framework,
            held.version,
            str(held.adapters),
            f"{held.own / 2**20:,.0f}",
            f"{held.grown / 2**20:,.0f}",
            f"{held.grown / held.own:.2f}",
        ]
        for held in report.holdings
    ]
    return f"{Columns(('', 'framework', *MEMORY), MEMORY).table(rows)}\n\n{GROWN}"
