"""A training step alone, and beside one busy process: as commands settle threads, and as the libraries would.

``python tests/bench/threads.py`` prints a table; a quiet machine of two cores is what it is meant for.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack

import numpy as np

from convert.base import load_base
from mlx_peft.config import files, recipes
from mlx_peft.config.schema import Experiment
from mlx_peft.core import threads
from mlx_peft.protocols.loading import load_backend
from mlx_peft.training.work import threads_worth

VIT_SMALL = {"name": "vit_small_patch16_224", "weights": "none"}
LORA = {"name": "lora", "rank": 8, "targets": ["qkv", "proj", "fc1", "fc2"]}


def experiment(which: str) -> Experiment:
    """The quickstart's, or LoRA on ViT-S/16 with eight images."""
    if which == "quickstart":
        return files.load(recipes.locate("quickstart"))
    return Experiment.model_validate({"model": VIT_SMALL, "method": LORA, "data": {"name": "digits", "batch_size": 8}})


def work(backend: str, which: str, settled: bool, steps: int) -> None:
    """Prints the mean of a step's milliseconds."""
    config = experiment(which)
    if settled:
        threads.settle()
        threads.at_most(threads_worth(config))
    engine = load_backend(backend)
    base = load_base(config.model, 10, 0)
    trainer = engine.build_trainer(config, 10, base)
    random, size, batch = np.random.default_rng(0), base.architecture.img_size, config.data.batch_size
    images = random.integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    targets = random.integers(0, 10, batch, dtype=np.int32)
    seconds = []
    for _ in range(2 + steps):
        start = time.perf_counter()
        float(trainer.train_step(images, targets, 1e-3))
        seconds.append(time.perf_counter() - start)
    print(1000 * statistics.mean(seconds[2:]))


def measured(arguments: list[str], busy: int) -> float:
    """What a process of ``work`` prints, beside so many busy ones."""
    given = {name: value for name, value in os.environ.items() if name not in (threads.NUMBER, *threads.WAITING)}
    with ExitStack() as stack:
        for _ in range(busy):
            other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(other.wait)
            stack.callback(other.kill)
        command = [sys.executable, __file__, *arguments]
        return float(subprocess.run(command, env=given, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", nargs="*", help="for its own processes: BACKEND quickstart|vit-s settled|free STEPS")
    told = parser.parse_args().work
    if told:
        work(told[0], told[1], told[2] == "settled", int(told[3]))
        return
    print("| step | threads | alone, ms | beside one busy process, ms | ratio |\n|---|---|---:|---:|---:|")
    for backend in ("mlx", "torch"):
        for which, steps in (("quickstart", "60"), ("vit-s", "4")):
            for how in ("settled", "free"):
                alone, beside = (measured([backend, which, how, steps], busy) for busy in (0, 1))
                print(
                    f"| {backend}, {which} | {how} | {alone:,.0f} | {beside:,.0f} | {beside / alone:.1f} |", flush=True
                )


if __name__ == "__main__":
    main()
