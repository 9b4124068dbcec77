"""What the checks measure, as Markdown tables: times of steps and of images, and the cells of the parity matrices."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_peft.checks import bench, bench_data
from mlx_peft.checks.busy import Others
from mlx_peft.checks.parity import Cell
from mlx_peft.checks.precision import HalfCell
from mlx_peft.core.text import counted
from mlx_peft.report.blocks import Columns, row
from mlx_peft.report.format import seconds

UNMEASURED = "-"


@dataclass(frozen=True)
class Table:
    """A parity matrix as Markdown: its columns, and what makes a row of a cell."""

    columns: Columns
    cells: Callable[[Any], list[str]]

    def row(self, found: Any) -> str:
        """One cell's line."""
        return row(self.cells(found))

    def whole(self, found: Iterable[Any]) -> str:
        return self.columns.table(map(self.cells, found))


def _cell(found: Cell) -> list[str]:
    verdict = _verdict(found.passed)
    if found.masks is not None:
        masks = f"differ after {counted(found.masks, 'step')}" if found.masks else "equal at every step"
        verdict += f"; masks {masks}"
    merged = "never" if found.merged is None else f"{found.merged:.1e}"
    drift = "not run" if found.trajectory is None else f"{found.trajectory:.1e}"
    return [
        found.model, found.method, str(found.bits or 32), f"{found.logits:.1e}", merged, f"{found.loss:.1e}",
        f"{found.gradients:.1e}", found.worst, drift, verdict,
    ]  # fmt: skip


def _half_cell(found: HalfCell) -> list[str]:
    return [
        found.model, found.method, str(found.bits or 32), found.precision, found.backend, str(found.rows),
        f"{found.logits:.1e}", f"{found.loss:.1e}", f"{found.gradients:.1e}", found.worst, _verdict(found.passed),
    ]  # fmt: skip


def _verdict(passed: bool) -> str:
    return "ok" if passed else "**differs**"


_FIGURES = ("logits", "loss", "gradients")
MATRIX = Table(
    Columns(
        ("model", "method", "bits", "logits", "merged logits", "loss", "gradients", "worst gradient", "trajectory", ""),
        numeric=("bits", "merged logits", "trajectory", *_FIGURES),
    ),
    _cell,
)
"""In float32."""

HALVES = Table(
    Columns(
        ("model", "method", "bits", "precision", "backend", "rows", *_FIGURES, "worst gradient", ""),
        numeric=("bits", "rows", *_FIGURES),
    ),
    _half_cell,
)
"""In a half precision."""


def verdict(found: Sequence[Cell] | Sequence[HalfCell], taken: float) -> str:
    """Whether the backends agree, in how many cells, where they do so least, and how many seconds that took."""
    differing = sum(not cell.passed for cell in found)
    said = f"differ in {differing} of" if differing else f"agree in{' all' * (len(found) > 1)}"
    worst = [max((figures(cell)[name], cell.model, cell.method) for cell in found) for name in _FIGURES]
    largest = ", ".join(
        f"{name} {size:.1e} ({model}, {method})" for name, (size, model, method) in zip(_FIGURES, worst, strict=True)
    )
    return f"the backends {said} {counted(len(found), 'cell')}, in {seconds(taken)}; largest errors: {largest}"


def figures(cell: Cell | HalfCell) -> dict[str, float]:
    """What every cell has, by name."""
    return dict(zip(_FIGURES, (cell.logits, cell.loss, cell.gradients), strict=True))


def steps(settings: bench.Settings, timings: Sequence[bench.Timing], others: Others) -> str:
    """Every contender of ``bench``, and its time as a share of each other's, median over rounds."""

    def mebibytes(count: int | None) -> str:
        return UNMEASURED if count is None else f"{count / 2**20:,.0f}"

    several = len(settings.methods) > 1
    names = [f"{timing.method} in {timing.name}" if several else timing.name for timing in timings]
    numbers = [
        "images/s", "fastest step, ms", "matrix products", "saved activations, MiB", "peak of arrays, MiB",
        "peak of the process, MiB",
        *(f"time / {name}'s" for name in names),
    ]  # fmt: skip
    rows = [
        [
            name,
            timing.version,
            f"{timing.images_per_second:.1f}",
            f"{1000 * min(timing.seconds):.0f}",
            UNMEASURED if timing.products_share is None else f"{timing.products_share:.0%}",
            mebibytes(timing.saved_bytes),
            mebibytes(timing.arrays_bytes),
            mebibytes(timing.process_bytes),
            *(f"{bench.ratio(timing, other):.2f}" for other in timings),
        ]
        for name, timing in zip(names, timings, strict=True)
    ]
    lora = f"LoRA r {settings.rank} on {', '.join(settings.targets)}"
    methods = ", ".join(lora if method == bench.PEERS_METHOD else method for method in settings.methods)
    setting = (
        f"{methods}; {settings.model}, batch {settings.batch_size}, {settings.precision}"
        f"{', compiled' if settings.compile else ''}; {settings.rounds} rounds in turn, {others}"
    )
    return f"{setting}\n\n{Columns(('', 'framework', *numbers), numbers).table(rows)}"


def images(
    settings: bench_data.Settings,
    speeds: Sequence[bench_data.Throughput],
    shares: Sequence[bench_data.Share],
    others: Others,
) -> str:
    """The pipelines of ``bench data``, and below them, where it was measured, what small images cost a step."""
    numbers = ("images/s, median", "lowest to highest", "median ratio to the DataLoader")
    rows = [
        [
            speed.name,
            speed.interpolation,
            f"{statistics.median(speed.images_per_second):,.0f}",
            f"{min(speed.images_per_second):,.0f} to {max(speed.images_per_second):,.0f}",
            UNMEASURED if speed.ratio is None else f"{speed.ratio:.2f}",
        ]
        for speed in speeds
    ]
    setting = (
        f"Files to {settings.image_size} px, batches of {settings.batch_size}, {settings.threads} threads or workers, "
        f"{settings.rounds} rounds in turn, {others}"
    )
    found = f"{setting}\n\n{Columns(('pipeline', 'interpolation', *numbers), numbers).table(rows)}"
    return f"{found}\n\n{_small_images(shares)}" if shares else found


def _small_images(shares: Sequence[bench_data.Share]) -> str:
    numbers = ("pipeline", "resize and normalise", "step", "share of both in the step")
    rows = [
        [
            share.backend,
            f"{1000 * share.pipeline_seconds:.1f}",
            f"{1000 * share.resize_seconds:.1f}",
            f"{1000 * share.step_seconds:,.0f}",
            f"{share.share:.1%}",
        ]
        for share in shares
    ]
    setting = (
        f"32 px arrays, padded crop and flip, a LoRA step of {shares[0].model} at 224 px, "
        f"batch {shares[0].batch_size}; milliseconds a batch, medians"
    )
    return f"{setting}\n\n{Columns(('backend', *numbers), numbers).table(rows)}"
