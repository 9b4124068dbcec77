"""What ``bench data`` measures of threads and processes, as a Markdown table."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_peft.checks.bench_data import Settings, Share
from mlx_peft.checks.bench_workers import Supply, needed
from mlx_peft.report.blocks import Columns


def workers(settings: Settings, supplies: Sequence[Supply], shares: Sequence[Share]) -> str:
    """A row of each kind and number of workers; where steps were timed, how much of what is read each would take."""
    need = needed(shares)
    steps = [f"share that a step of {backend} takes" for backend in need]
    numbers = ("number", "images/s, median", "lowest to highest", "times those of one", *steps)
    one = {(found.workers, found.augment): found.median for found in supplies if found.number == 1}
    rows = [
        [
            found.augment,
            found.workers,
            str(found.number),
            f"{found.median:,.0f}",
            f"{min(found.images_per_second):,.0f} to {max(found.images_per_second):,.0f}",
            f"{found.median / one[found.workers, found.augment]:.2f}",
            *(f"{rate / found.median:.1%}" for rate in need.values()),
        ]
        for found in supplies
    ]
    setting = f"Files to {settings.image_size} px by threads and by processes, as many as there are cores free"
    if shares:
        setting += f"; a step is that of {shares[0].model} below"
    return f"{setting}\n\n{Columns(('augmentation', 'workers', *numbers), numbers).table(rows)}"
