"""A training step whose process keeps what it frees, beside one where glibc decides; and peft's, where it always does.

``python tests/bench/freed_memory.py`` prints a table; a quiet machine is what it is meant for. Pages are those that a
step asked the kernel for.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time

import numpy as np

from convert.base import load_base
from mlx_peft.checks import bench
from mlx_peft.core import heap
from mlx_peft.core.memory import process_peak

KEPT, GLIBCS = "kept", "glibc's to keep or to give back"


def work(contender: str, steps: int) -> None:
    """Prints the cells of a row."""
    settings = bench.Settings()
    config, backend = bench.experiment(settings, "lora"), bench.module(contender)
    trainer = backend.build_trainer(config, bench.CLASSES, load_base(config.model, bench.CLASSES, 0))
    random, batch = np.random.default_rng(0), settings.batch_size
    images = random.integers(0, 256, (batch, 224, 224, 3), dtype=np.uint8)
    targets = random.integers(0, bench.CLASSES, batch, dtype=np.int32)
    seconds, spent = [], []
    for _ in range(2 + steps):
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        trainer.train_step(images, targets, 1e-3)
        backend.synchronize()
        after = resource.getrusage(resource.RUSAGE_SELF)
        seconds.append(time.perf_counter() - start)
        spent.append([getattr(after, kind) - getattr(before, kind) for kind in ("ru_utime", "ru_stime", "ru_minflt")])
    own, kernels, pages = (statistics.median(kind) for kind in zip(*spent[2:], strict=True))
    print(
        f"{1000 * statistics.median(seconds[2:]):,.0f} | {1000 * own:,.0f} | {1000 * kernels:,.0f} | {pages:,.0f} | "
        f"{process_peak() / 2**20:,.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", nargs="*", help="for its own processes: mlx|torch|peft STEPS")
    told = parser.parse_args().work
    if told:
        work(told[0], int(told[1]))
        return
    print(
        "| step | freed memory is | ms | own processor time, ms | the kernel's, ms | pages | peak of the process, MiB |"
    )
    print("|---|---|---:|---:|---:|---:|---:|")
    for contender, how in (("torch", KEPT), ("torch", GLIBCS), ("mlx", KEPT), ("mlx", GLIBCS), ("peft", GLIBCS)):
        said = {} if how == KEPT else {heap.SETTINGS[0]: ""}  # by which a user has said something, and glibc nothing
        command = [sys.executable, __file__, contender, "5"]
        row = subprocess.run(command, env=os.environ | said, stdout=subprocess.PIPE, text=True, check=True).stdout
        print(f"| {contender} | {how} | {row.strip()} |", flush=True)


if __name__ == "__main__":
    main()
