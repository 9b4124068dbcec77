"""Seconds an epoch with the features of the frozen prefix kept, and without, through ``mlx-peft train``.

    python tests/bench/frozen_prefix.py [IMAGES] [--backend mlx] [--model vit_small_patch16_224] [--image-size 224]
        [--blocks 4] [--batch-size 32] [--epochs 3] [--rounds 1] [--count 256]

IMAGES holds a folder of images for each class; left out, COUNT smooth random JPEGs of 250 px are made. A linear probe
and LoRA in the last BLOCKS blocks are trained on random weights, features kept and not kept in turn, each run in a
process of its own; seconds are those of training that the run itself records. The first epoch includes compiling and,
where they are kept, computing the features. Ratios are medians over the rounds. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mlx_peft.config.files import dump
from mlx_peft.config.schema import Experiment

CLASSES = 4
KEPT, NOT_KEPT = 1e3, 0.0
"""``train.cache_features`` in GB: more than any machine's memory has room for, and off."""


@dataclass(frozen=True)
class Timing:
    """Seconds of training of one run, epoch by epoch, and what it says of itself."""

    epochs: list[float]
    result: dict[str, Any]

    @property
    def first(self) -> float:
        return self.epochs[0]

    @property
    def later(self) -> float:
        return statistics.median(self.epochs[1:])


def draw(folder: Path, count: int) -> None:
    """Smooth random images, which are about as large as photographs when compressed."""
    random = np.random.default_rng(0)
    for number in range(count):
        place = folder / str(number % CLASSES)
        place.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8))
        small.resize((250, 250), Image.Resampling.BICUBIC).save(place / f"{number}.jpg", quality=90)


def experiment(arguments: argparse.Namespace, images: Path, method: dict[str, Any], limit: float) -> Experiment:
    return Experiment.model_validate({
        "backend": arguments.backend,
        "model": {"name": arguments.model, "weights": "none", "image_size": arguments.image_size},
        "method": method,
        "data": {"name": "folder", "root": str(images), "batch_size": arguments.batch_size, "split": {"val": 0.0}},
        "train": {"epochs": arguments.epochs, "cache_features": limit},
    })  # fmt: skip


def run(config: Experiment, out: Path) -> Timing:
    """Trains in a process of its own."""
    file = out.with_suffix(".yaml")
    file.write_text(dump(config))
    command = [sys.executable, "-m", "mlx_peft", "train", str(file), "--out", str(out), "--json"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    records = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    seconds = [record["seconds"] for record in records if "seconds" in record]
    return Timing(seconds, json.loads((out / "result.json").read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, nargs="?")
    parser.add_argument("--backend", choices=["mlx", "torch"], default="mlx")
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=3, help="at least 2")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--count", type=int, default=256, help="of random images")
    arguments = parser.parse_args()
    if arguments.epochs < 2:
        parser.error("--epochs 1 has no later epoch to time")

    methods: dict[str, dict[str, Any]] = {
        "linear probe": {"name": "linear"},
        f"LoRA, last {arguments.blocks} blocks": {"name": "lora", "blocks": f"last {arguments.blocks}"},
    }
    rounds: dict[str, list[tuple[Timing, Timing]]] = {name: [] for name in methods}
    with tempfile.TemporaryDirectory() as scratch:
        images = arguments.images
        if images is None:
            images = Path(scratch) / "images"
            draw(images, arguments.count)
        for number in range(arguments.rounds):
            for name, method in methods.items():
                plain, kept = (
                    run(
                        experiment(arguments, images.resolve(), method, limit),
                        Path(scratch) / f"{number} {name} {limit}",
                    )
                    for limit in (NOT_KEPT, KEPT)
                )
                rounds[name].append((plain, kept))

    result = rounds["linear probe"][0][1].result
    print(
        f"{arguments.model} at {arguments.image_size} px on {result['splits']['train']['size']:,} images, batches of "
        f"{arguments.batch_size}, float32; {arguments.epochs} epochs, {arguments.rounds} rounds in turn; "
        f"{result['environment']['framework']}, Python {platform.python_version()}, {platform.machine()}, "
        f"{result['environment']['cpus']} CPUs\n"
    )
    print(
        "| trained | features | first epoch, s | later epochs, s | kept: first, s | kept: later, s "
        "| first, times faster | later, times faster |\n|---|---:|---:|---:|---:|---:|---:|---:|"
    )
    for name, pairs in rounds.items():
        size = pairs[0][1].result["cached_features"]["bytes"]
        columns = [
            statistics.median(plain.first for plain, _ in pairs),
            statistics.median(plain.later for plain, _ in pairs),
            statistics.median(kept.first for _, kept in pairs),
            statistics.median(kept.later for _, kept in pairs),
        ]
        first = statistics.median(plain.first / kept.first for plain, kept in pairs)
        later = statistics.median(plain.later / kept.later for plain, kept in pairs)
        cells = " | ".join(f"{seconds:,.2f}" for seconds in columns)
        print(f"| {name} | {size / 1e6:,.1f} MB | {cells} | {first:.1f} | {later:.1f} |")


if __name__ == "__main__":
    main()
