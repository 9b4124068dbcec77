"""The time of one training step, each contender in a process of its own, in turn, so that ratios hold under noise."""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from convert.base import load_base
from mlx_peft.checks import products, turns
from mlx_peft.checks.busy import UNWATCHED, Around, Others
from mlx_peft.config.methods import LoRA, called
from mlx_peft.config.schema import Experiment, Precision
from mlx_peft.core.errors import UserError, suggest
from mlx_peft.core.memory import process_peak
from mlx_peft.protocols.loading import BACKENDS, PEERS, load_contender
from mlx_peft.protocols.measured import Contender
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.registry import find

CLASSES = 10
CONTENDERS = (*BACKENDS, *PEERS)
"""These are timed by default. Others come as Python files: modules as ``protocols.measured.Contender`` has it."""
PEERS_METHOD = LoRA.model_fields["name"].default
"""What contenders that are no backend train."""
AT = "@"
"""Between a method's name and a contender's."""
STEP, FIGURES = "step", "figures"
"""What a contender's process is asked."""


@dataclass(frozen=True)
class Settings:
    """What is timed. The defaults are the benchmark that experiments/results records."""

    model: str = "vit_small_patch16_224"
    batch_size: int = 8
    rank: int = 8
    """LoRA's."""
    targets: tuple[str, ...] = ("qkv", "proj", "fc1", "fc2")
    """LoRA's."""
    rounds: int = 9
    warmup: int = 2
    methods: tuple[str, ...] = ("lora",)
    """Each is timed in every backend; other contenders train LoRA alone."""
    precision: str = "float32"
    """Of the step; of peft's by torch's autocast."""
    compile: bool = False
    """torch's step and peft's by ``torch.compile``; MLX compiles always."""
    device: str = "auto"
    """That PyTorch computes on."""
    only: tuple[str, ...] = CONTENDERS
    """Those of CONTENDERS that are timed, where they are installed."""


@dataclass(frozen=True)
class Timing:
    """One contender's figures; seconds are of a whole training step, forward, backward and optimiser."""

    name: str
    method: str
    version: str
    seconds: list[float]
    images_per_second: float
    """At the fastest step."""
    products_seconds: float | None
    """The matrix products that a step cannot do without, alone, in the same framework."""
    products_share: float | None
    """Of the fastest step."""
    saved_bytes: int | None
    """Activations that autograd keeps; torch only."""
    arrays_bytes: int | None
    """The most that the framework's arrays held at once; None where it does not count them, as torch on a CPU."""
    process_bytes: int
    """The most that the whole process held of the machine's memory."""


def experiment(settings: Settings, method: str) -> Experiment:
    """A method over random weights; images are random too, since only the clock is read."""
    options = {"rank": settings.rank, "targets": settings.targets} if method == PEERS_METHOD else {}
    return Experiment.model_validate(
        {
            "model": {"name": settings.model, "weights": "none"},
            "method": called(method, options).model_dump(),
            "data": {"name": "digits", "batch_size": settings.batch_size},
            "train": {"precision": settings.precision, "compile": settings.compile},
            "device": settings.device,
        }
    )


def module(contender: str) -> Contender:
    """The contender's module, by its name or from a file."""
    if contender in CONTENDERS:
        return load_contender(contender)
    spec = importlib.util.spec_from_file_location(Path(contender).stem, contender)
    if spec is None or spec.loader is None:
        raise UserError(f"{contender}: not a Python file", arguments=("beside",))
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return cast(Contender, found)


def work(entry: str, settings: Settings) -> Callable[[str], Any]:
    """What the process of one contender answers: to STEP a step's seconds, to FIGURES the other figures.

    ``entry`` is as ``entries`` has it.
    """
    method, _, contender = entry.partition(AT)
    backend, config = module(contender), experiment(settings, method)
    base = load_base(config.model, CLASSES, config.seed)
    trainer = backend.build_trainer(config, CLASSES, base)
    size, random = base.architecture.img_size, np.random.default_rng(0)
    images = random.integers(0, 256, (settings.batch_size, size, size, 3), dtype=np.uint8)
    targets = random.integers(0, CLASSES, settings.batch_size, dtype=np.int32)

    def step() -> None:
        trainer.train_step(images, targets, 1e-3)
        backend.synchronize()

    def figures() -> dict[str, Any]:
        arrays, process = backend.peak_memory(), process_peak()  # before the products, which are no part of a step
        return {
            "version": backend.version(),
            "products_seconds": _products_seconds(
                backend, base.architecture, settings.batch_size, config.train.precision
            ),
            "saved_bytes": backend.saved_bytes(trainer, images, targets),
            "arrays_bytes": arrays,
            "process_bytes": process,
        }

    for _ in range(settings.warmup):
        step()
    return lambda request: turns.seconds(step) if request == STEP else figures()


def _products_seconds(backend: Contender, architecture: Architecture, batch: int, precision: Precision) -> float | None:
    """Of all of a step's matrix products alone; None where they are not measured."""
    total = 0.0
    for times, count, m, k, n in products.step(architecture, batch):
        tries = [backend.multiply(count, m, k, n, precision) for _ in range(5)]
        measured = [turns.seconds(product) for product in tries if product is not None]
        if not measured:
            return None
        total += times * min(measured)
    return total


def available(contenders: Sequence[str]) -> Iterator[str]:
    """The contenders whose packages are installed; a file is always taken at its word."""
    needs = {"mlx": ("mlx",), "torch": ("torch",), "peft": ("torch", "timm", "peft")}
    for name in contenders:
        if all(importlib.util.find_spec(package) for package in needs.get(name, ())):
            yield name


def entries(settings: Settings, beside: Sequence[str]) -> list[str]:
    """What is timed, a method and a contender each: ``lora@torch``. What is no backend trains LoRA alone."""
    return [
        f"{method}{AT}{contender}"
        for method in settings.methods
        for contender in (*available(settings.only), *beside)
        if contender in BACKENDS or method == PEERS_METHOD
    ]


def run(settings: Settings, beside: Sequence[str] = (), others: Around = UNWATCHED) -> list[Timing]:
    """Times every contender that is installed, and the Python files of ``beside``, round by round in turn.

    ``others``: around what is timed, as ``checks.busy.Others`` is. Raises UserError where a name is wrong, or a process
    dies.
    """
    if settings.precision not in get_args(Precision):
        known = ", ".join(get_args(Precision))
        raise UserError(f"{settings.precision}: a precision is one of {known}", arguments=("precision",))
    if unknown := [name for name in settings.only if name not in CONTENDERS]:
        raise UserError(f"{unknown[0]}: no contender{suggest(unknown[0], CONTENDERS)}", arguments=("only",))
    architecture = find(settings.model).architecture  # a mistake is told once, not by every process
    for method in settings.methods:
        chosen = experiment(settings, method).method
        chosen.check(architecture)
        chosen.check_quantization(architecture, None)
    for file in beside:
        if not Path(file).is_file():
            raise UserError(f"{file}: no such file", arguments=("beside",))
    names = entries(settings, beside)
    with others, turns.workers("mlx_peft.checks.bench", names, asdict(settings)) as workers:
        times: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(settings.rounds):
            for name, worker in workers.items():
                times[name].append(worker.ask(STEP))
        return [timing(name, settings, times[name], worker.ask(FIGURES)) for name, worker in workers.items()]


def timing(entry: str, settings: Settings, seconds: list[float], figures: dict[str, Any]) -> Timing:
    """A contender's figures, from its steps' seconds and what its process printed at the end."""
    needed = figures["products_seconds"]
    method, _, contender = entry.partition(AT)
    return Timing(
        name=Path(contender).stem,
        method=method,
        version=figures["version"],
        seconds=seconds,
        images_per_second=settings.batch_size / min(seconds),
        products_seconds=needed,
        products_share=needed / min(seconds) if needed else None,
        saved_bytes=figures["saved_bytes"],
        arrays_bytes=figures["arrays_bytes"],
        process_bytes=figures["process_bytes"],
    )


def ratio(timing: Timing, other: Timing) -> float:
    """Median over rounds of one contender's seconds by another's."""
    return statistics.median(a / b for a, b in zip(timing.seconds, other.seconds, strict=True))


def summary(found: Sequence[tuple[Settings, Sequence[Timing]]], others: Others) -> dict[str, object]:
    """What ``bench --json`` prints of one table or several."""
    tables = [{"settings": asdict(settings), "contenders": [asdict(t) for t in timings]} for settings, timings in found]
    return {**others.facts(), "benchmarks": tables}


if __name__ == "__main__":
    turns.serve(lambda: work(sys.argv[1], Settings(**json.loads(sys.argv[2]))))
