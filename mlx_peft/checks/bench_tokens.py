"""Images a second with fewer tokens, beside the plain model: each backend in a process of its own, all in turn."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from convert.base import Base, load_base
from mlx_peft.checks import products, turns
from mlx_peft.checks.bench import CLASSES, available
from mlx_peft.checks.busy import UNWATCHED, Around, Others
from mlx_peft.config.methods import Linear
from mlx_peft.config.schema import Experiment, Model
from mlx_peft.config.tokens import NONE, ReducerConfig
from mlx_peft.config.tokens_text import reducer_of
from mlx_peft.core.errors import UserError
from mlx_peft.protocols.backend import Backend
from mlx_peft.protocols.loading import BACKENDS, load_backend

REDUCERS = (
    *("tome r=8", "tome r=13", "tome r=16"),
    *("evit keep=0.8", "evit keep=0.7", "evit keep=0.5"),
    *("skipvit keep=0.7", "skipvit keep=0.45", "skipvit keep=0.3"),
)
"""What is timed if nothing else is asked for, beside the plain model."""
ANSWER, TRAIN = "inference", "training"
"""What is timed: an answer to a batch, and a LoRA training step on it."""
TARGETS = ("qkv", "proj", "fc1", "fc2")
MODULE = "mlx_peft.checks.bench_tokens"


@dataclass(frozen=True)
class Settings:
    """What is timed.

    Attributes:
        model: as an experiment has it; its weights do not matter, since only the clock is read.
        reducers: as a person writes them, NONE first: see ``config.tokens_text.reducer_of``.
        backends: those that are timed.
        rank: of LoRA, on all four layers of every block.
        rounds: in each, everything is timed once.
    """

    model: dict[str, Any]
    reducers: tuple[str, ...]
    backends: tuple[str, ...]
    batch_size: int = 16
    rank: int = 8
    rounds: int = 5
    warmup: int = 2


@dataclass(frozen=True)
class Speed:
    """One reducer in one backend, doing one thing: inference or training.

    Attributes:
        seconds: of a batch, round by round.
        flops: an image, of the model's products: see ``checks.products``.
        times: how many times as many images a second as the plain model: the median of the rounds'.
    """

    backend: str
    reducer: str
    what: str
    batch_size: int
    seconds: tuple[float, ...]
    flops: float
    times: float

    @property
    def images_per_second(self) -> float:
        """At the median round."""
        return self.batch_size / statistics.median(self.seconds)

    @property
    def fastest(self) -> float:
        """Images a second at the fastest round."""
        return self.batch_size / min(self.seconds)


def settings_of(
    model: Model, reducers: Sequence[str], backends: Sequence[str] | None = None, **options: int
) -> Settings:
    """The settings for a model and reducers, NONE first and each once; in every backend that is installed, if not said.

    Raises UserError where there is none, no such one, or the model cannot be reduced so: before any process is started.
    """
    named = model.model_copy(update={"weights": "none", "head": "new"})
    architecture = load_base(named, CLASSES, 0).architecture
    found = {NONE: NONE}
    for text in reducers:
        if (config := reducer_of(text)) is not None:
            config.check(architecture)
            found[str(config)] = text
    if len(found) == 1:
        raise UserError(
            "no reducer is named beside the plain model: name one, like 'tome r=13'", arguments=("reducers",)
        )
    there = tuple(available(list(BACKENDS))) if backends is None else tuple(backends)
    return Settings(named.model_dump(mode="json"), tuple(found.values()), there, **options)


def run(settings: Settings, others: Around = UNWATCHED) -> list[Speed]:
    """Times everything in every backend, within ``others``: a reducer right behind the plain model that it is compared
    with, in the same process. What a process does first after another's turn is not counted, but done again.

    Raises UserError where a process dies.
    """
    with others, turns.workers(MODULE, settings.backends, asdict(settings)) as workers:
        times: dict[tuple[str, str, str], list[float]] = {}
        for _ in range(settings.rounds):
            for what in (ANSWER, TRAIN):
                for name, worker in workers.items():
                    worker.ask([NONE, what])
                    for reducer in settings.reducers:
                        times.setdefault((name, reducer, what), []).append(worker.ask([reducer, what]))
    counts = _flops(settings)
    return [
        Speed(
            backend=name,
            reducer=_spelled(reducer),
            what=what,
            batch_size=settings.batch_size,
            seconds=tuple(seconds),
            flops=counts[reducer, what],
            times=statistics.median(a / b for a, b in zip(times[name, NONE, what], seconds, strict=True)),
        )
        for (name, reducer, what), seconds in times.items()
    ]


def work(name: str, settings: Settings) -> Callable[[Sequence[str]], float]:
    """What the process of a backend answers: seconds of a batch under a reducer."""
    backend, base = load_backend(name), _base(settings)
    size, random = base.architecture.img_size, np.random.default_rng(0)
    images = random.integers(0, 256, (settings.batch_size, size, size, 3), dtype=np.uint8)
    targets = random.integers(0, CLASSES, settings.batch_size, dtype=np.int32)
    actions = {text: _actions(backend, base, settings, reducer_of(text), images, targets) for text in settings.reducers}
    for each in actions.values():
        for action in each.values():
            for _ in range(settings.warmup):
                action()
    return lambda request: turns.seconds(actions[request[0]][request[1]])


def _actions(
    backend: Backend,
    base: Base,
    settings: Settings,
    reducer: ReducerConfig | None,
    images: np.ndarray,
    targets: np.ndarray,
) -> Mapping[str, Callable[[], object]]:
    """Both things that are timed, each done when it returns."""
    model = backend.build_model(base, CLASSES, Linear(), tokens=reducer)
    trainer = backend.build_trainer(_experiment(settings, reducer), CLASSES, base)

    def step() -> None:
        trainer.train_step(images, targets, 1e-3)
        backend.synchronize()

    return {ANSWER: lambda: model.logits(images), TRAIN: step}


def _base(settings: Settings) -> Base:
    return load_base(Model.model_validate(settings.model), CLASSES, 0)


def _experiment(settings: Settings, reducer: ReducerConfig | None) -> Experiment:
    return Experiment.model_validate(
        {
            "model": settings.model,
            "method": {"name": "lora", "rank": settings.rank, "targets": TARGETS},
            "data": {"name": "digits", "batch_size": settings.batch_size},
            "tokens": None if reducer is None else reducer.model_dump(mode="json"),
        }
    )


def _flops(settings: Settings) -> dict[tuple[str, str], float]:
    """An image's, by reducer and what is done."""
    architecture = _base(settings).architecture
    counted = {ANSWER: products.forward, TRAIN: products.step}
    return {
        (text, what): products.flops(count(architecture, 1, reducer_of(text)))
        for text in settings.reducers
        for what, count in counted.items()
    }


def _spelled(text: str) -> str:
    """As everybody writes it, whatever a person wrote."""
    return str(reducer_of(text) or NONE)


def summary(settings: Settings, speeds: Sequence[Speed], others: Others) -> dict[str, Any]:
    """What ``bench tokens --json`` prints."""
    return {
        "settings": asdict(settings),
        **others.facts(),
        "speeds": [{**asdict(one), "images_per_second": one.images_per_second} for one in speeds],
    }


if __name__ == "__main__":
    turns.serve(lambda: work(sys.argv[1], Settings(**json.loads(sys.argv[2]))))
