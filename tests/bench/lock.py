"""How much of the time that an image takes Python's lock is held: what so many threads can make of it at the most.

    python tests/bench/lock.py IMAGES

One thread makes rows of the images, another one counts: while the second sleeps, the first holds the lock. What either
waits for a processor is known to Linux and left out, so that the machine may be at work on other things too. A row that
takes 5 ms of a processor, 1 ms of it with the lock, is worth 5 threads: beyond, they wait for one another. The middle
of the rounds is told.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from pathlib import Path

import numpy as np

from mlx_peft.config import schema
from mlx_peft.data import open_dataset
from mlx_peft.data.filling import Chunk, fill
from mlx_peft.data.rows import Augmented, Evaluated, Rows
from mlx_peft.vit.architecture import Preprocessing

HALF = (0.5, 0.5, 0.5)
PREPROCESSING = Preprocessing(mean=HALF, std=HALF)
KINDS: dict[str, schema.Augment | None] = {
    "evaluation": None,
    "crop and flip": schema.Augment(crop="random_resized", flip=True),
    "crop, flip, colour jitter": schema.Augment(crop="random_resized", flip=True, color_jitter=schema.ColorJitter()),
    "crop, flip, RandAugment": schema.Augment(crop="random_resized", flip=True, randaugment=schema.RandAugment()),
    "crop, flip, RandAugment, erasing": schema.Augment(
        crop="random_resized", flip=True, randaugment=schema.RandAugment(), erasing=schema.Erasing(fill="noise")
    ),
}
COUNT, ROUNDS, SIZE = 256, 5, 224


class Counter:
    """A thread that wants the lock all the time."""

    def __init__(self) -> None:
        self._ends = threading.Event()
        self.slept = 0.0
        self._thread = threading.Thread(target=self._count)

    def _count(self) -> None:
        began, ran, waited = time.perf_counter(), *here()
        ends = self._ends.is_set
        while not ends():
            for _ in range(1000):
                pass
        now = here()
        self.slept = time.perf_counter() - began - (now[0] - ran) - (now[1] - waited)

    def __enter__(self) -> Counter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()


def here() -> tuple[float, float]:
    """Seconds that this thread has had a processor, and has waited for one."""
    ran, waited, _ = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").read_text().split()
    return int(ran) / 1e9, int(waited) / 1e9


def share(chunk: Chunk) -> tuple[float, float]:
    """Seconds of a processor that a row takes; and of them those with the lock."""
    out = list(np.zeros((len(chunk.places), SIZE, SIZE, 3), np.uint8))
    began = time.thread_time()
    fill(chunk, out)
    alone = time.thread_time() - began
    with Counter() as counter:
        ran, waited = here()
        fill(chunk, out)
        now = here()
    ran, waited = now[0] - ran, now[1] - waited
    return alone / len(out), counter.slept * ran / (ran + waited) / len(out)


def main(root: str) -> None:
    sys.setswitchinterval(1e-4)  # so that it is over sooner; whoever holds the lock holds it as long
    data = schema.Data(name="folder", root=Path(root), split=schema.Split(val=0))
    images = open_dataset(data).train.images
    some = np.linspace(0, len(images) - 1, min(COUNT, len(images))).astype(np.int64)
    print("| rows | ms of a processor | with the lock | threads that are worth it |\n|---|---:|---:|---:|")
    for name, augment in KINDS.items():
        rows: Rows = (
            Evaluated(PREPROCESSING, SIZE) if augment is None else Augmented(augment, PREPROCESSING, SIZE, 0, 0)
        )
        found = [share(Chunk(rows, images, some, some, np.zeros_like(some), False)) for _ in range(ROUNDS + 1)][1:]
        alone, locked = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"| {name} | {1000 * alone:.2f} | {1000 * locked:.2f} | {alone / locked:.1f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
