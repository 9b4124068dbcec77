"""What a run gathers over 20,000 steps on each backend: memory, threads, open files, mappings; see ``scale.py``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_peft.training.progress import Silent, StepEvent

STEPS, SETTLED, TIMES = 20_000, 1_000, 40
"""Steps of a run; after how many it should have all that it needs; and how often it is looked at."""
EXPERIMENT: dict[str, Any] = {
    "model": {
        "name": "vit_tiny_patch16_224",
        "weights": "none",
        "image_size": 8,
        "args": {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2},
    },
    "method": {"name": "lora", "rank": 2},
    "data": {"name": "digits", "batch_size": 16},
    "track": ["tensorboard"],
}


def counts() -> dict[str, int]:
    """Of this process, from the kernel: resident bytes, threads, open files, mappings."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "resident": int(status["VmRSS"].split()[0]) * 1024,
        "threads": int(status["Threads"]),
        "open files": len(os.listdir("/proc/self/fd")),
        "mappings": len(Path("/proc/self/maps").read_text().splitlines()),
    }


@dataclass
class Watching(Silent):
    """Looks at the process now and then, and prints what it found."""

    every: int

    def step(self, event: StepEvent) -> None:
        if event.step % self.every == 0:
            print(json.dumps({"step": event.step, **counts()}), flush=True)


def work(backend: str, steps: int) -> None:
    """The process of one run."""
    from mlx_peft.config.schema import Experiment
    from mlx_peft.data import open_dataset, steps_per_epoch
    from mlx_peft.training.train import train

    values = EXPERIMENT | {"backend": backend, "train": {"checkpoint_every": 50, "log_every": 10}}
    data = Experiment.model_validate(values).data
    epochs = -(-steps // steps_per_epoch(open_dataset(data).train, data.batch_size))
    experiment = Experiment.model_validate(values | {"train": {**values["train"], "epochs": epochs}})
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        train(experiment, Path(folder) / "run", progress=Watching(max(1, steps // TIMES)))


def soak(steps: int = STEPS) -> Iterator[str]:
    """The lines of a table: what each backend has after SETTLED steps, and the most and the last after that.

    The two run beside each other, in processes of their own.
    """
    yield (
        f"A LoRA on a ViT of one block, {steps:,} steps of each backend in one process, to see whether memory, threads "
        'or files gather: a checkpoint\nevery 50 steps, TensorBoard every 10, validation every epoch. "Resident" is '
        'the memory of the process, "mappings" are the regions of it.'
    )
    yield f"\n| backend | steps | what | after {SETTLED:,} steps | most after that | at the end |"
    yield "|---|---:|---|---:|---:|---:|"
    commands = {backend: [sys.executable, __file__, backend, str(steps)] for backend in ("mlx", "torch")}
    running = {name: subprocess.Popen(command, stdout=subprocess.PIPE) for name, command in commands.items()}
    for backend, process in running.items():
        output, _ = process.communicate()
        if process.returncode:
            yield f"| **{backend}: failed, status {process.returncode}** | | | | | |"
            continue
        found = [one for one in map(json.loads, output.splitlines()) if one["step"] >= min(SETTLED, steps // 2)]
        for what in ("resident", "threads", "open files", "mappings"):
            values = [one[what] for one in found]
            shown = [
                f"{n / 2**20:,.1f} MiB" if what == "resident" else f"{n}" for n in (values[0], max(values), values[-1])
            ]
            yield f"| {backend} | {found[-1]['step']:,} | {what} | {' | '.join(shown)} |"


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]))
