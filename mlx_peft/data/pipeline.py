"""Splits to batches of uint8 images: read, augmented and cut to size by threads, a few batches ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from mlx_peft.config import schema
from mlx_peft.config.architecture import Preprocessing
from mlx_peft.data import augment, native
from mlx_peft.data.dataset import Split
from mlx_peft.data.recipe import crop_and_resize, eval_image

PREFETCH = 2
"""Batches prepared ahead of the one that is being consumed."""

CHUNK = 8
"""Images a thread prepares at a time: few, so that all threads share a batch; not one, so that handing out is cheap."""


@dataclass(frozen=True, eq=False)
class Batch:
    """A fixed number of rows, of which the first `count` are images; the others only fill it up.

    images: uint8 ``(batch, height, width, 3)``, or their features, float32; C-contiguous, zero in the other rows.
    targets: int32 ``(batch,)``, -1 in the other rows.
    """

    images: np.ndarray
    targets: np.ndarray
    count: int


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """Batches of an epoch, the last of which may be partly filled."""
    return -(-split.size // batch_size)


def train_batches(
    split: Split,
    config: schema.Data,
    preprocessing: Preprocessing,
    image_size: int,
    *,
    seed: int,
    epoch: int,
    start: int = 0,
) -> Iterator[Batch]:
    """The batches `start`, `start` + 1, ... of an epoch, shuffled and augmented.

    A pure function of its arguments, the number of threads apart, which changes nothing. Arrays cross at their stored
    size unless they are cropped at random; everything else at `image_size`. Raises UserError at an unreadable image.
    """
    images, wanted = split.images, config.augment
    random_resized = wanted.crop == "random_resized"
    as_stored = images.stored_size is not None and not random_resized

    def row(index: int) -> np.ndarray:
        image = images.read(index)
        if not wanted.changes_pixels:
            return image if as_stored else eval_image(image, preprocessing, image_size)
        rng = augment.generator(seed, epoch, index)
        if random_resized:
            box = augment.random_resized_box(rng, (image.shape[0], image.shape[1]), wanted.scale, wanted.ratio)
            image = _training_crop(image, box, image_size, preprocessing.interpolation)
        elif wanted.crop == "padded":
            image = augment.padded_crop(rng, image, wanted.padding)
        if not (as_stored or random_resized):
            image = eval_image(image, preprocessing, image_size)
        return image[:, ::-1] if wanted.flip and rng.random() < 0.5 else image

    size = images.stored_size if as_stored else None
    order = augment.shuffle(split.size, seed, epoch)
    return _batches(split, order, row, size or (image_size, image_size), config, start)


def eval_batches(split: Split, config: schema.Data, preprocessing: Preprocessing, image_size: int) -> Iterator[Batch]:
    """The batches of a split in its own order: arrays at their stored size, files by the evaluation recipe."""
    images = split.images

    def row(index: int) -> np.ndarray:
        return eval_image(images.read(index), preprocessing, image_size)

    size = images.stored_size
    reader = row if size is None else images.read
    return _batches(split, np.arange(split.size), reader, size or (image_size, image_size), config, start=0)


def feature_batches(
    split: Split, features: np.ndarray, batch_size: int, order: np.ndarray, start: int = 0
) -> Iterator[Batch]:
    """The batches `start`, `start` + 1, ... of images in some order, their features in place of their pixels.

    features: float32 ``(size, ...)``, in the split's own order.
    """
    for first in range(start * batch_size, split.size, batch_size):
        indices = order[first : first + batch_size]
        count = len(indices)
        rows = np.zeros((batch_size, *features.shape[1:]), np.float32)
        rows[:count] = features[indices]
        targets = np.full(batch_size, -1, np.int32)
        targets[:count] = split.labels[indices]
        yield Batch(rows, targets, count)


def _training_crop(image: np.ndarray, box: tuple[int, int, int, int], size: int, interpolation: str) -> np.ndarray:
    if interpolation == "bilinear":
        top, left, height, width = box
        resized = native.resize_bilinear(image[top : top + height, left : left + width], size)
        if resized is not None:
            return resized
    return crop_and_resize(image, box, size, interpolation)


def _batches(
    split: Split,
    order: np.ndarray,
    row: Callable[[int], np.ndarray],
    size: tuple[int, int],
    config: schema.Data,
    start: int,
) -> Iterator[Batch]:
    """Batches of the rows in `order`. However the consumer leaves, the threads are gone when the iterator is closed."""

    def fill(indices: np.ndarray, out: np.ndarray) -> None:
        for index, place in zip(indices.tolist(), out, strict=True):
            place[...] = row(index)

    def submit(step: int) -> tuple[Batch, list[Future[None]]]:
        indices = order[step * config.batch_size : (step + 1) * config.batch_size]
        count = len(indices)
        batch = Batch(
            images=np.zeros((config.batch_size, *size, 3), np.uint8),
            targets=np.full(config.batch_size, -1, np.int32),
            count=count,
        )
        batch.targets[:count] = split.labels[indices]
        chunks = [slice(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]
        return batch, [pool.submit(fill, indices[chunk], batch.images[chunk]) for chunk in chunks]

    pending: deque[tuple[Batch, list[Future[None]]]] = deque()
    pool = ThreadPoolExecutor(config.threads, thread_name_prefix="mlx-peft-data")
    try:
        steps = iter(range(start, steps_per_epoch(split, config.batch_size)))
        while True:
            while len(pending) <= PREFETCH and (step := next(steps, None)) is not None:
                pending.append(submit(step))
            if not pending:
                return
            batch, futures = pending.popleft()
            for future in futures:
                future.result()
            yield batch
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
