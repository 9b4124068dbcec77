"""Batches whose images have adapters of their own, timed beside one merged model and beside switching, and peft's.

Each contender has a process of its own, and all answer the same batch in turn, with the adapters dealt out anew. Before
it each answers one more, whose adapters are dealt out otherwise, that does not count: it finds the caches full of what
another process has left there, which a server that answers batch after batch meets once.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from convert.adapters.peft import Adapter, write_adapter
from convert.base import Base, load_base
from mlx_peft.adaptation.adapter import adapter_shapes
from mlx_peft.checks import turns
from mlx_peft.checks.bench import available
from mlx_peft.checks.busy import UNWATCHED, Around, Others
from mlx_peft.checks.resident import resident_bytes
from mlx_peft.config.schema import Experiment
from mlx_peft.core.errors import UserError
from mlx_peft.protocols.loading import BACKENDS, PEERS_OF_BANKS, load_backend, load_library, load_peer_of_banks
from mlx_peft.protocols.measured import ManyAdapters
from mlx_peft.vit.registry import find

CLASSES = 10
MERGED, MIXED, SWITCHED = "merged", "mixed", "one by one"
"""One adapter in plain layers, whatever is asked; all adapters in one batch; each adapter's rows after a switch."""
FIGURES = "figures"
"""What is asked at the end; before it, the adapters of a batch's images by their names."""


@dataclass(frozen=True)
class Settings:
    """What is timed; images and weights are random, since only the clock is read.

    Attributes:
        image_size: pixels.
        counts: of adapters that a batch has, each for as many images.
        resident: adapters in memory, of which a batch has some; the most of ``counts`` at least.
        folder: with the adapters.
    """

    model: str = "vit_small_patch16_224"
    image_size: int = 64
    batch_size: int = 32
    rank: int = 16
    counts: tuple[int, ...] = (1, 8, 32)
    rounds: int = 5
    resident: int = 32
    folder: str = ""

    @property
    def names(self) -> list[str]:
        """Of the adapters in memory."""
        return [f"a{number:04d}" for number in range(max(self.resident, *self.counts))]


@dataclass(frozen=True)
class Timing:
    """One contender's figures for one number of adapters; seconds are of a whole batch, round by round."""

    framework: str
    way: str
    adapters: int
    wall: list[float]
    process: list[float]
    switches: list[float]
    """Seconds of one switch; empty where nothing is switched."""


@dataclass(frozen=True)
class Holding:
    """What the adapters in memory cost a process that mixes them."""

    framework: str
    version: str
    adapters: int
    own: int
    """Bytes of their tensors."""
    grown: int
    """Bytes that the process grew by."""


@dataclass(frozen=True)
class Report:
    """Of one size of images."""

    settings: Settings
    timings: list[Timing]
    holdings: list[Holding]


def experiment(settings: Settings) -> Experiment:
    """LoRA on all linear layers of the blocks."""
    model = {"name": settings.model, "weights": "none", "image_size": settings.image_size}
    method = {"name": "lora", "rank": settings.rank, "targets": ["all-linear"]}
    return Experiment.model_validate({"model": model, "method": method, "data": {"name": "digits"}})


def write(settings: Settings, folder: Path) -> int:
    """The adapters that a batch may have, as folders. Returns the bytes of one's tensors."""
    config = experiment(settings)
    base = load_base(config.model, CLASSES, config.seed)
    shapes = adapter_shapes(config.method, base.architecture, CLASSES)
    for number, name in enumerate(settings.names[: max(settings.counts)]):
        random = np.random.default_rng(number)
        tensors = {name: random.standard_normal(shape, np.float32) / 50 for name, shape in shapes.items()}
        own = Adapter(
            method=config.method, tensors=tensors, classes=(), model=config.model, architecture=base.architecture,
            preprocessing=base.preprocessing, base_sha256=base.sha256, source=base.source,
        )  # fmt: skip
        write_adapter(folder / name, own)
    return sum(tensor.nbytes for tensor in tensors.values())


class Contender:
    """One way in one framework, ready to answer batches.

    Attributes:
        version: of the framework.
        grown: bytes that the process grew by with its adapters.
    """

    version: str
    grown: int
    answer: Callable[[np.ndarray, Sequence[str]], object]
    switch: Callable[[str], None]

    def __init__(self, framework: str, way: str, settings: Settings) -> None:
        config = experiment(settings)
        if framework in BACKENDS:
            self.version = load_backend(framework).version()
            self._ours(framework, way, settings)
        else:
            peer = load_peer_of_banks(framework)
            base = load_base(config.model, CLASSES, config.seed)
            self.version, before = peer.version(), resident_bytes()
            self._theirs(peer.build_bank(config, CLASSES, base, settings.names), way)
            self.grown = resident_bytes() - before - _bytes_of(base)

    def _ours(self, framework: str, way: str, settings: Settings) -> None:
        library, folder = load_library(framework), Path(settings.folder)
        model = library.create_model(settings.model, "none", CLASSES, settings.image_size)
        if way == MERGED:
            library.load_adapter(model, folder / settings.names[0])
            compiled = library.compiled(model, "float32", [settings.batch_size])
            self.answer, self.grown = lambda images, names: compiled.logits(images), 0
            return
        bank = library.load_adapters(model, folder)
        blank = np.zeros((1, settings.image_size, settings.image_size, 3), np.uint8)
        bank.logits(blank)  # what the first batch costs is no adapter's
        before = resident_bytes()
        for number, name in enumerate(settings.names):
            bank.add(folder / settings.names[number % max(settings.counts)], name)
        self.grown = resident_bytes() - before
        self.switch = bank.set_adapter
        self.answer = bank.logits if way == MIXED else lambda images, names: bank.logits(images)

    def _theirs(self, bank: ManyAdapters, way: str) -> None:
        self.switch = bank.switch
        self.answer = bank.mixed if way == MIXED else lambda images, names: bank.logits(images)


def _bytes_of(base: Base) -> int:
    return sum(tensor.nbytes for tensor in base.tensors.values())


def work(contender: str, settings: Settings) -> Callable[[Any], Any]:
    """The process of one contender: the adapters of a batch's images in, seconds out."""
    framework, way = contender.split(" ", 1)
    own = Contender(framework, way, settings)
    size = settings.image_size
    images = np.random.default_rng(0).integers(0, 256, (settings.batch_size, size, size, 3), dtype=np.uint8)

    def batch(names: Sequence[str]) -> dict[str, Any]:
        switches: list[float] = []
        wall, process = time.perf_counter(), time.process_time()
        if way == SWITCHED:
            for name in dict.fromkeys(names):
                mine = images[[at for at, other in enumerate(names) if other == name]]
                switches.append(turns.seconds(lambda name=name: own.switch(name)))  # type: ignore[misc]
                own.answer(mine, [name] * len(mine))
        else:
            own.answer(images, names)
        return {
            "wall": time.perf_counter() - wall,
            "process": time.process_time() - process,
            "switches": switches,
        }

    def answer(request: Any) -> dict[str, Any]:
        if request == FIGURES:
            return {"version": own.version, "grown": own.grown}
        batch(request[1:] + request[:1])
        return batch(request)

    return answer


def contenders(frameworks: Sequence[str] = ()) -> list[str]:
    """``torch mixed`` and so on, of the frameworks that are installed, or of these. Raises UserError for any other."""
    there = [*available([*BACKENDS, *PEERS_OF_BANKS])]
    if others := [name for name in frameworks if name not in there]:
        raise UserError(f"there is no {others[0]} here: there are {', '.join(there)}", arguments=("only",))
    chosen = [name for name in there if not frameworks or name in frameworks]
    ways = {name: (MERGED, MIXED, SWITCHED) if name in BACKENDS else (MIXED, SWITCHED) for name in chosen}
    return [f"{name} {way}" for name in chosen for way in ways[name]]


def run(settings: Settings, frameworks: Sequence[str] = (), others: Around = UNWATCHED) -> Report:
    """Times every contender, batch by batch in turn; the first round of each number of adapters is not counted.

    ``others``: around what is timed, as ``checks.busy.Others`` is.
    """
    find(settings.model)  # a mistake is told once, not by every process
    names = contenders(frameworks)
    with others, tempfile.TemporaryDirectory() as folder:
        own = write(settings, Path(folder))
        settings = replace(settings, folder=folder)
        with turns.workers("mlx_peft.checks.bench_inference", names, asdict(settings)) as workers:
            timings = [found for count in settings.counts for found in _rounds(settings, count, workers)]
            figures = {name: worker.ask(FIGURES) for name, worker in workers.items()}
    held = len(settings.names)
    holdings = [
        Holding(name.split()[0], found["version"], held, held * own, found["grown"])
        for name, found in figures.items()
        if name.endswith(MIXED)
    ]
    return Report(replace(settings, folder=""), timings, holdings)


def _rounds(settings: Settings, count: int, workers: dict[str, turns.Worker]) -> list[Timing]:
    """Of batches with so many adapters."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    for number in range(settings.rounds + 1):
        dealt = (settings.names[:count] * settings.batch_size)[: settings.batch_size]
        np.random.default_rng([number, count]).shuffle(dealt)
        for name, worker in workers.items():
            found[name].append(worker.ask(dealt))
    timings = []
    for name, rounds in found.items():
        framework, way = name.split(" ", 1)
        wall, process = ([one[kind] for one in rounds[1:]] for kind in ("wall", "process"))
        switches = [seconds for one in rounds[1:] for seconds in one["switches"]]
        timings.append(Timing(framework, way, count, wall, process, switches))
    return timings


def share(timing: Timing, of: Timing, kind: Literal["wall", "process"] = "wall") -> float:
    """A contender's throughput as a share of another's: the median over the rounds; ``wall`` or ``process`` time."""
    own, theirs = (one.process if kind == "process" else one.wall for one in (timing, of))
    return statistics.median(b / a for a, b in zip(own, theirs, strict=True))


def summary(reports: Sequence[Report], others: Others) -> dict[str, object]:
    """What ``bench inference --json`` prints."""
    return {**others.facts(), "reports": [asdict(report) for report in reports]}


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    turns.serve(lambda: work(sys.argv[1], Settings(**given | {"counts": tuple(given["counts"])})))
