"""Runs of several processes: ``ranks.py BACKEND FOLDER EPOCHS KILLS KIND...``. Each process is a fork of this one,
which computes nothing, so that a backend is loaded once; what it says stands in ``RUN.RANK.txt`` beside its run.

A launcher is played: its variables are set, and the processes are started. What one launcher does besides is tried with
``torchrun`` itself.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import socket
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from fake_backend import MODEL, make_dataset
from killing import begin

from mlx_peft.config.schema import Experiment
from mlx_peft.core.errors import UserError
from mlx_peft.protocols.loading import BACKENDS
from mlx_peft.tasks import single_label_metrics
from mlx_peft.tasks.metrics import Evaluation
from mlx_peft.training import prepare
from mlx_peft.training.stop import Interrupted
from mlx_peft.training.train import train

PATIENT, SHORT = 6.0, 1.0
"""Seconds that a process waits for the others here: those that are alive answer within a tenth of the first. The second
is for one that never answers: MLX's process computes while it waits. PyTorch's keeps to what it began with."""

BEGUN = {"mlx": 20, "torch": 12}
"""So many exchanges come before the first step."""

LOADED = {"mlx": (BACKENDS["mlx"],), "torch": (BACKENDS["torch"], "torch._dynamo")}

SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {},
    "accumulated": {"train": {"accumulate": 2}},
    "adalora": {
        "method": {"name": "adalora", "init_rank": 3, "target_rank": 2, "t_init": 3, "t_final": 5, "delta_t": 2}
    },
    "bitfit, weighted": {
        "method": {"name": "bitfit"},
        "data": {"class_weights": "balanced"},
        "train": {"label_smoothing": 0.1},
    },
    "full, mixed": {
        "method": {"name": "full"},
        "data": {"augment": {"mixup": 0.8, "cutmix": 1.0}},
        "train": {"optimizer": {"name": "adamw", "lr": 1e-3}},
    },
    "probe": {"method": {"name": "linear"}},
}
"""What runs differ in; there are 44 images, so that the last batch of 12 is not full."""


def experiment(backend: str, settings: dict[str, Any], epochs: int) -> Experiment:
    """A run of four steps an epoch."""
    train = {"epochs": epochs, "log_every": 1, "optimizer": {"name": "adamw", "lr": 5e-3}, "clip_norm": 1.0}
    return Experiment.model_validate({
        "backend": backend,
        "model": {**MODEL, "args": {**MODEL["args"], "embed_dim": 16, "depth": 2, "num_heads": 2}},
        "method": settings.get("method", {"name": "lora", "rank": 2, "alpha": 4}),
        "data": {"name": "colours", "batch_size": 12, "threads": 1, **settings.get("data", {})},
        "train": train | settings.get("train", {}),
    })  # fmt: skip


def small() -> None:
    """Has this process train on few images, and measure little of them."""
    prepare.open_dataset = lambda *_: make_dataset()  # type: ignore[assignment]
    # The loss and the accuracy are left, by which an epoch is the best: the others take longer than a run.
    single_label_metrics.measure = lambda *_: Evaluation({}, None, {}, {})  # type: ignore[assignment]


class Ranks:
    """Processes of one backend, which share their runs' folder; and how long each run is."""

    def __init__(self, backend: str, folder: Path, epochs: int) -> None:
        self.backend, self.folder, self.epochs = backend, folder, epochs
        for module in LOADED[backend]:  # before a fork: it takes longer than a run
            importlib.import_module(module)

    def experiment(self, settings: str) -> Experiment:
        return experiment(self.backend, SETTINGS[settings], self.epochs)

    def begin(self, size: int, work: Callable[[int], object], name: str) -> list[int]:
        """So many processes, whose work is given their rank, by their numbers."""
        hosts = [[f"127.0.0.1:{free_port()}"] for _ in range(size)]
        file = self.folder / f"{name}.hosts.json"
        file.write_text(json.dumps(hosts))

        def rank(number: int) -> Callable[[], None]:
            def work_of_it() -> None:
                if size > 1 and self.backend == "mlx":
                    os.environ |= {"MLX_RANK": str(number), "MLX_HOSTFILE": str(file)}
                elif size > 1:
                    address, port = hosts[0][0].split(":")
                    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(size)}
                    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": port}
                small()
                log = os.open(self.folder / f"{name}.{number}.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
                os.dup2(log, 2)
                try:
                    work(number)
                except UserError as error:
                    print(f"error: {error}", file=sys.stderr)
                    os._exit(2)
                except Interrupted:
                    os._exit(130)
                except SystemExit as end:
                    os._exit(end.code if isinstance(end.code, int) else 1)

            return work_of_it

        return [begin(rank(number)) for number in range(size)]

    def run(self, size: int, work: Callable[[int], object], name: str) -> list[int]:
        """The statuses with which they end."""
        return [status(child) for child in self.begin(size, work, name)]

    def training(self, name: str, settings: str, harm: Callable[[int], None]) -> Callable[[int], None]:
        """Begins or goes on with a run, of which each process may come to harm."""

        def work(rank: int) -> None:
            harm(rank)
            train(self.experiment(settings), self.folder / name, resume=True)

        return work

    def train(self, size: int, name: str, settings: str, harm: Callable[[int], None] = lambda rank: None) -> list[int]:
        return self.run(size, self.training(name, settings, harm), name)


def status(child: int) -> int:
    """With which a process ends; minus the number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def at_exchange(backend: str, number: int, harm: Callable[[], None]) -> None:
    """Has harm come to this process at one of its exchanges with the others."""
    world = sys.modules[{"mlx": "mlx_peft.backend.world", "torch": "torch_ref.world"}[backend]]
    world.PATIENCE = PATIENT  # type: ignore[attr-defined]
    numbers, usual = count(), world.lost

    def lost(*rank: int) -> Any:
        if next(numbers) == number:
            harm()
        return usual(*rank)

    world.lost = lost  # type: ignore[attr-defined]


def equal(ranks: Ranks, kinds: list[str]) -> dict[str, list[int]]:
    """Some kinds of run, each by one process and by two, which are joined once; one is by parts in the place of
    processes."""

    def all_of(folder: str) -> Callable[[int], None]:
        (ranks.folder / folder).mkdir()

        def work(rank: int) -> None:
            if ranks.backend == "mlx":  # what is told goes in pieces, as what is too large for an array does
                sys.modules["mlx_peft.backend.world"]._PIECE = 2**14  # type: ignore[attr-defined]
            for name in kinds:
                train(ranks.experiment(name), ranks.folder / folder / name)

        return work

    return {"one": ranks.run(1, all_of("1"), "one"), "two": ranks.run(2, all_of("2"), "two")}


def killed(ranks: Ranks, kills: int) -> dict[str, Any]:
    """A run of two processes of which one is killed, again and again, wherever; then three end it."""
    chance, statuses = random.Random(0), []
    for _ in range(kills):
        victim, exchange = chance.randrange(2), chance.randrange(2, BEGUN[ranks.backend] + 8)

        def harm(rank: int, victim: int = victim, exchange: int = exchange) -> None:
            never = rank != victim
            at_exchange(ranks.backend, -1 if never else exchange, lambda: os.kill(os.getpid(), signal.SIGKILL))

        statuses.append(ranks.train(2, "killed", "lora", harm))
    return {"killed": statuses, "ended by three": ranks.train(3, "killed", "lora")}


def hanging(ranks: Ranks) -> list[int]:
    """A run of two processes of which the second is alive and does nothing."""
    world = sys.modules["mlx_peft.backend.world" if ranks.backend == "mlx" else "torch_ref.world"]

    def wait_less() -> None:
        world.PATIENCE = SHORT  # type: ignore[attr-defined]

    return ranks.begin(
        2,
        ranks.training(
            "hung", "lora", lambda rank: at_exchange(ranks.backend, 20, signal.pause if rank else wait_less)
        ),
        "hung",
    )


def hung(ranks: Ranks, children: list[int]) -> dict[str, Any]:
    """What becomes of them, of which the second is killed only when the first has ended; then one ends the run."""
    first, second = children
    ends = [status(first)]
    os.kill(second, signal.SIGKILL)
    return {"hung": [*ends, status(second)], "ended by one": ranks.train(1, "hung", "lora")}


def stopped(ranks: Ranks) -> dict[str, Any]:
    """A run of two processes of which the second alone is asked to stop; then one ends it."""

    def harm(rank: int) -> None:
        at_exchange(ranks.backend, 20 if rank else -1, lambda: os.kill(os.getpid(), signal.SIGTERM))

    return {"stopped": ranks.train(2, "stopped", "adalora", harm), "ended": ranks.train(1, "stopped", "adalora")}


if __name__ == "__main__":
    here = Ranks(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
    waiting = hanging(here)  # meanwhile the others are played
    found = {"equal": equal(here, sys.argv[5:]), "killed": killed(here, int(sys.argv[4])), "stopped": stopped(here)}
    print(json.dumps(found | {"hung": hung(here, waiting)}))
