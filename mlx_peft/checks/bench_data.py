"""Images a second of the input pipeline beside a torch DataLoader on the same files, and what small images cost a step.

Contenders take turns, so that what else the machine does falls on all alike; a ratio is the median of the rounds'.
"""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convert.base import load_base
from mlx_peft.checks.bench import available
from mlx_peft.checks.busy import UNWATCHED, Around, Others
from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.core.text import counted
from mlx_peft.data import ArrayImages, Batch, Dataset, Split, cached, open_dataset, train_batches
from mlx_peft.protocols.backend import Backend
from mlx_peft.protocols.loading import BACKENDS, load_backend, load_loaders
from mlx_peft.protocols.trainer import Trainer
from mlx_peft.vit.architecture import Preprocessing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INTERPOLATIONS = ("bilinear", "bicubic")


@dataclass(frozen=True)
class Settings:
    """What is timed. Every contender decodes, crops at random, resizes, flips and batches each image once a round."""

    root: str
    image_size: int = 224
    batch_size: int = 32
    threads: int = 2
    rounds: int = 5


@dataclass(frozen=True)
class Throughput:
    """One contender's figures over the rounds."""

    name: str
    interpolation: str
    images_per_second: list[float]
    ratio: float | None
    """Median over the rounds of its speed by the DataLoader's of the same interpolation; None without torch."""


@dataclass(frozen=True)
class Share:
    """What small stored images cost a training step: seconds a batch, medians."""

    backend: str
    model: str
    batch_size: int
    pipeline_seconds: float
    resize_seconds: float
    step_seconds: float

    @property
    def share(self) -> float:
        """As if nothing overlapped."""
        return (self.pipeline_seconds + self.resize_seconds) / self.step_seconds


def throughput(settings: Settings, others: Around = UNWATCHED) -> list[Throughput]:
    """Times the pipeline, with and without a decoded cache, and the DataLoader where torch is installed.

    ``others``: around what is timed, as ``checks.busy.Others`` is.

    Raises UserError where the two would read different images.
    """
    config = schema.Data(
        name="folder",
        root=Path(settings.root),
        batch_size=settings.batch_size,
        threads=settings.threads,
        split=schema.Split(val=0),
        augment=schema.Augment(crop="random_resized", flip=True),
    )
    dataset = open_dataset(config)
    if len(dataset.splits) > 1:
        raise UserError(
            f"{settings.root}: has splits ({', '.join(dataset.splits)}), and the DataLoader would read them as "
            f"classes; name the folder of one: {dataset.train.images.identifiers[0].partition('/')[0]}"
        )
    peer = load_loaders() if importlib.util.find_spec("torch") else None
    with tempfile.TemporaryDirectory() as folder:
        kept = cached(dataset, config.model_copy(update={"cache": schema.Cache(gigabytes=1e6, folder=Path(folder))}))
        contenders: dict[tuple[str, str], Callable[[], Iterable[object]]] = {}
        for interpolation in INTERPOLATIONS:
            if peer is not None:
                loader = peer.loader(
                    settings.root, settings.image_size, settings.batch_size, settings.threads, interpolation
                )
                if len(loader.dataset) != dataset.train.size:
                    raise UserError(
                        f"{settings.root}: torchvision finds {counted(len(loader.dataset), 'image')} there and this "
                        f"project {dataset.train.size:,}; a comparison needs the same: "
                        f"{'; '.join(dataset.notes) or 'no notes'}"
                    )
                contenders["torch DataLoader", interpolation] = lambda loader=loader: loader  # type: ignore[misc]
            contenders["mlx-peft", interpolation] = batches(dataset, config, settings, interpolation)
            contenders["mlx-peft, decoded cache", interpolation] = batches(kept, config, settings, interpolation)
        with others:
            speeds = rounds(contenders, dataset.train.size, settings.rounds)
    found = []
    for (name, interpolation), own in speeds.items():
        theirs = speeds.get(("torch DataLoader", interpolation))
        ratio = statistics.median(a / b for a, b in zip(own, theirs, strict=True)) if theirs else None
        found.append(Throughput(name, interpolation, own, ratio))
    return found


def batches(
    dataset: Dataset, config: schema.Data, settings: Settings, interpolation: Any
) -> Callable[[], Iterable[object]]:
    """An epoch of the pipeline, the same each time."""
    preprocessing = Preprocessing(mean=MEAN, std=STD, interpolation=interpolation)
    return lambda: train_batches(dataset.train, config, preprocessing, settings.image_size, seed=0, epoch=0)


def rounds(
    contenders: dict[tuple[str, str], Callable[[], Iterable[object]]], images: int, count: int
) -> dict[tuple[str, str], list[float]]:
    """Images a second of each, round by round, after one round that fills caches and starts workers."""
    speeds: dict[tuple[str, str], list[float]] = {name: [] for name in contenders}
    for number in range(count + 1):
        for name, start in contenders.items():
            began = time.perf_counter()
            for _ in start():
                pass
            if number:
                speeds[name].append(images / (time.perf_counter() - began))
    return speeds


def small_images(
    model: str = "vit_tiny_patch16_224",
    batch_size: int = 32,
    side: int = 32,
    rounds: int = 5,
    threads: int = 2,
    others: Around = UNWATCHED,
) -> list[Share]:
    """What 32 px images (CIFAR's size; noise, since only the clock is read) cost a LoRA step of each backend."""
    data = {
        "name": "cifar100",
        "batch_size": batch_size,
        "threads": threads,
        "augment": {"crop": "padded", "flip": True},
    }
    pixels = np.random.default_rng(0).integers(0, 256, (batch_size * 40, side, side, 3), np.uint8)
    split = Split("train", ArrayImages.whole(pixels, "noise"), np.arange(len(pixels)) % 100)
    found = []
    for name in sorted(available(list(BACKENDS)), reverse=True):  # torch before MLX: see mlx_peft.backend.blas
        experiment = schema.Experiment.model_validate(
            {
                "backend": name,
                "model": {"name": model, "weights": "none"},
                "method": {"name": "lora"},
                "data": data,
            }
        )
        backend = load_backend(name)
        base = load_base(experiment.model, 100, 0)
        trainer, size = backend.build_trainer(experiment, 100, base), base.architecture.img_size
        batch = next(iter(train_batches(split, experiment.data, base.preprocessing, size, seed=0, epoch=0)))
        resize = backend.resizing(batch.images, base.preprocessing, size)

        def step(trainer: Trainer = trainer, batch: Batch = batch, backend: Backend = backend) -> None:
            trainer.train_step(batch.images, batch.targets, 1e-3)
            backend.synchronize()

        def epoch(experiment: schema.Experiment = experiment, base: Any = base, size: int = size) -> None:
            for _ in train_batches(split, experiment.data, base.preprocessing, size, seed=0, epoch=0):
                pass

        actions = {"pipeline": epoch, "resize": resize, "step": step}
        times: dict[str, list[float]] = {action: [] for action in actions}
        with others:
            for number in range(rounds + 1):
                for action, act in actions.items():
                    began = time.perf_counter()
                    act()
                    if number:
                        times[action].append(time.perf_counter() - began)
        median = {action: statistics.median(values) for action, values in times.items()}
        found.append(Share(name, model, batch_size, median["pipeline"] / 40, median["resize"], median["step"]))
    return found


def summary(
    settings: Settings, speeds: Sequence[Throughput], shares: Sequence[Share], others: Others
) -> dict[str, object]:
    """What ``bench data --json`` prints."""
    return {
        "settings": asdict(settings),
        **others.facts(),
        "throughput": [asdict(speed) for speed in speeds],
        "small_images": [{**asdict(share), "share": share.share} for share in shares],
    }
