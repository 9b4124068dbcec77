"""Images a second of the input pipeline by threads and by processes, as many of them as the machine has cores."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from mlx_peft.checks.bench_data import Settings, Share, batches, rounds
from mlx_peft.checks.busy import UNWATCHED, Around
from mlx_peft.config import schema
from mlx_peft.core import cores
from mlx_peft.data import open_dataset

NUMBERS = (1, 2, 4, 8, 16)
Workers = Literal["threads", "processes"]
AUGMENTS = {
    "crop and flip": schema.Augment(crop="random_resized", flip=True),
    "crop, flip, RandAugment": schema.Augment(crop="random_resized", flip=True, randaugment=schema.RandAugment()),
}


@dataclass(frozen=True)
class Supply:
    """What so many workers read: images a second, by the round."""

    workers: Workers
    number: int
    augment: str
    images_per_second: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.images_per_second)


def supplies(settings: Settings, others: Around = UNWATCHED) -> list[Supply]:
    """Times each kind and number of workers on the same images, in turn.

    ``others``: around what is timed, as ``checks.busy.Others`` is. Raises UserError where there are no images.
    """
    config = schema.Data(
        name="folder", root=Path(settings.root), batch_size=settings.batch_size, split=schema.Split(val=0)
    )
    dataset = open_dataset(config)
    contenders: dict[tuple[str, str], Callable[[], Iterable[object]]] = {}
    cells: list[tuple[Workers, int, str]] = []
    for augment, wanted in AUGMENTS.items():
        for workers in get_args(Workers):
            for number in (number for number in NUMBERS if number <= cores.free()):
                own = {"augment": wanted, "workers": workers, "threads": number}
                cells.append((workers, number, augment))
                contenders[f"{number} {workers}", augment] = batches(
                    dataset, config.model_copy(update=own), settings, "bicubic"
                )
    with others:
        speeds = rounds(contenders, dataset.train.size, settings.rounds)
    return [Supply(*cell, speed) for cell, speed in zip(cells, speeds.values(), strict=True)]


def needed(shares: Sequence[Share]) -> dict[str, float]:
    """Images a second that a training step of each backend takes here."""
    return {share.backend: share.batch_size / share.step_seconds for share in shares}
