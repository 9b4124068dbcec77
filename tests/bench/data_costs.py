"""What data costs in processor time and memory where there is much of it, or too little, or where it repeats itself.

    python tests/bench/data_costs.py

Every case is a process of its own. Memory is its peak beyond what it had before; the folder it works in is removed.
With another version of the project first in PYTHONPATH that one is measured.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from growing import parquet
from PIL import Image

PHOTOGRAPHS, FRAMES, ROWS, EVALUATED, CLASSES = 300, 1_000, 200_000, 10_000, 1_000


def smooth(rng: np.random.Generator, side: int) -> np.ndarray:
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))


def opening(folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """A folder of photographs of 1,000 px, opened twice; then with its near-duplicates kept together."""
    from mlx_peft.config import schema
    from mlx_peft.data import open_dataset

    rng = np.random.default_rng(0)
    for number in range(PHOTOGRAPHS):
        path = folder / "images" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(smooth(rng, 1000)).save(path)
    plain = schema.Data(name="folder", root=folder / "images", cache={"folder": folder / "cache"})
    alike = plain.model_copy(update={"split": schema.Split(group_by="duplicates")})
    for what, config in (("", plain), (", near-duplicates kept together", alike)):
        for turn in ("first", "again"):
            yield f"{PHOTOGRAPHS} photographs{what}: opened {turn}", lambda config=config: open_dataset(config)


def frames(folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    from mlx_peft.data.duplicates import clusters
    from mlx_peft.data.seen import RECORD, seen

    rng = np.random.default_rng(0)
    picture = smooth(rng, 64).astype(float)
    images = [np.clip(picture + rng.normal(0, 8, picture.shape), 0, 255).astype(np.uint8) for _ in range(FRAMES)]
    records = np.array([seen(image) for image in images], RECORD)
    yield f"{FRAMES:,} frames that are all alike: clustered", lambda: clusters(records)


def batch(folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    from convert.base import load_base
    from mlx_peft.config import schema
    from mlx_peft.data import ArrayImages, Dataset, Split
    from mlx_peft.protocols.loading import load_backend
    from mlx_peft.training.feed import feed

    size, rows = 32, 2048
    experiment = schema.Experiment.model_validate({
        "backend": "torch",
        "model": {"name": "vit_tiny_patch16_224", "weights": "none", "image_size": size},
        "method": {"name": "lora"},
        "data": {"name": "six", "batch_size": rows},
    })  # fmt: skip
    pixels = np.random.default_rng(0).integers(0, 256, (6, size, size, 3), np.uint8)
    dataset = Dataset("six", ("a", "b"), Split("train", ArrayImages.whole(pixels, "six"), np.arange(6) % 2), None, None)
    base = load_base(experiment.model, 2, 0)
    trainer = load_backend("torch").build_trainer(experiment, 2, base)

    def step() -> None:
        for some in feed(experiment, dataset, base).train(0, 0):
            float(trainer.train_step(some.images, some.targets, 1e-3))

    yield f"six images in a batch of {rows:,}, vit_tiny at {size} px: a step", step


def evaluation(folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    import sklearn.metrics  # noqa: F401  whose memory is not counted

    from mlx_peft.tasks.single_label import SINGLE_LABEL
    from mlx_peft.training.evaluate import measured

    def answers(classes: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        rng = np.random.default_rng(0)
        for _ in range(0, EVALUATED, 50):
            yield rng.normal(0, 1, (50, classes)).astype(np.float32).astype(np.float64), rng.integers(0, classes, 50)

    for classes in (100, CLASSES):
        yield (
            f"{EVALUATED:,} images of {classes:,} classes: validated",
            lambda classes=classes: measured(answers(classes), SINGLE_LABEL, classes),
        )


def table(folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Parquet: of two images of 4 kB each row has one."""
    yield from parquet(folder, ROWS // 10_000)


CASES = {case.__name__: case for case in (opening, frames, batch, evaluation, table)}


def measured_here(case: str) -> None:
    """Prints a line for each part of a case."""
    with tempfile.TemporaryDirectory() as folder:
        for what, work in CASES[case](Path(folder)):
            before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
            work()
            seconds = time.process_time() - began
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            print(json.dumps([what, seconds, peak * (1 if sys.platform == "darwin" else 1024)]), flush=True)


def main() -> None:
    print("| what | CPU seconds | memory |\n|---|---:|---:|")
    for case in CASES:
        done = subprocess.run([sys.executable, __file__, case], stdout=subprocess.PIPE, text=True, check=True)
        for line in done.stdout.splitlines():
            what, seconds, peak = json.loads(line)
            print(f"| {what} | {seconds:.2f} | {peak / 2**20:,.0f} MiB |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measured_here(sys.argv[1])
    else:
        main()
