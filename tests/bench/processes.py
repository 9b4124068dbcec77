"""The step of one process with two threads beside that of two processes with one thread each, the same batch in both.

``python tests/bench/processes.py`` prints a table, the ratios of rounds in turn; it needs a machine of two quiet cores.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from convert.base import load_base
from mlx_peft.config.schema import Experiment
from mlx_peft.protocols.loading import load_backend

VIT_SMALL = {"name": "vit_small_patch16_224", "weights": "none"}
LORA = {"name": "lora", "rank": 8, "targets": ["qkv", "proj", "fc1", "fc2"]}


def work(backend: str, batch: int, steps: int) -> None:
    """Prints the median of a step's seconds, in the first process."""
    config = Experiment.model_validate({
        "model": VIT_SMALL, "method": LORA, "data": {"name": "digits", "batch_size": batch}
    })  # fmt: skip
    engine = load_backend(backend)
    base = load_base(config.model, 10, 0)
    trainer = engine.build_trainer(config, 10, base)
    random, size = np.random.default_rng(0), base.architecture.img_size
    images = random.integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    targets = random.integers(0, 10, batch, dtype=np.int32)
    seconds = []
    for _ in range(1 + steps):
        start = time.perf_counter()
        engine.world().any(False)  # as the loop asks before each step
        float(trainer.train_step(images, targets, 1e-3))
        seconds.append(time.perf_counter() - start)
    if engine.world().rank == 0:
        print(statistics.median(seconds[1:]))


def measured(backend: str, processes: int, arguments: list[str]) -> float:
    """What the first of so many processes prints."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    hosts = Path(f"/tmp/hosts-{port}.json")
    hosts.write_text(json.dumps([[f"127.0.0.1:{port + rank}"] for rank in range(processes)]))
    given = {**os.environ, "OMP_NUM_THREADS": str(2 // processes), "OMP_WAIT_POLICY": "PASSIVE"}
    started = []
    for rank in range(processes):
        own = {
            "torch": {"RANK": rank, "WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            "mlx": {"MLX_RANK": rank, "MLX_HOSTFILE": hosts},
        }[backend]
        variables = given | ({name: str(value) for name, value in own.items()} if processes > 1 else {})
        command = [sys.executable, __file__, "--work", backend, *arguments]
        started.append(subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True))
    said = [process.communicate()[0] for process in started]
    hosts.unlink()
    return float(said[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backends", nargs="*", default=["torch"])
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.batch, options.steps)
        return
    print(f"load average before: {os.getloadavg()[0]:.1f}\n")
    print("| backend | round | one process, s a step | two processes, s a step | throughput of two over one |")
    print("|---|--:|--:|--:|--:|")
    arguments = ["--batch", str(options.batch), "--steps", str(options.steps)]
    for backend in options.backends:
        for number in range(1, 1 + options.rounds):
            one, two = (measured(backend, processes, arguments) for processes in (1, 2))
            print(f"| {backend} | {number} | {one:.2f} | {two:.2f} | {one / two:.2f} |", flush=True)


if __name__ == "__main__":
    main()
