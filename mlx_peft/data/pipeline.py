"""Splits to batches of uint8 images: read, augmented and cut to size by threads, a few batches ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.core.world import ALONE, World, rows_of
from mlx_peft.data import augment, colour
from mlx_peft.data.dataset import ADVICE, Images, Split
from mlx_peft.data.memory import one_image
from mlx_peft.data.mix import Targets, mix
from mlx_peft.data.order import epoch_order, occurrences
from mlx_peft.data.recipe import eval_image
from mlx_peft.data.resize import crop_and_resize
from mlx_peft.data.unread import Broken, check_share
from mlx_peft.vit.architecture import Preprocessing

PREFETCH = 2
"""So many batches are prepared ahead of the one that is being consumed."""

CHUNK = 8
"""A thread prepares so many images at a time: few, so that all threads share a batch; not one, so that handing out is
cheap."""


@dataclass(frozen=True, eq=False)
class Batch:
    """A fixed number of rows, of which the first `count` are images; the others only fill it up. See ``mix.rows``.

    images: uint8 ``(batch, height, width, 3)``, or their features, float32; C-contiguous, zero in the other rows.
    targets: as the split's task has them, ``(batch, ...)``; the other rows add nothing to the loss.
    rows: int64 ``(count,)``, which of the split's images they are. Fewer, down to none, where some cannot be read and
    the split has them left out: see ``data.unread``.
    weight: what the loss's sum is divided by; None for what the targets add up to.
    """

    images: np.ndarray
    targets: np.ndarray
    rows: np.ndarray
    weight: float | None = None

    @property
    def count(self) -> int:
        return len(self.rows)


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
    num_classes: int | None = None,
    smoothing: float = 0.0,
    parts: int = 1,
    world: World = ALONE,
) -> Iterator[Batch]:
    """The batches `start`, `start` + 1, ... of an epoch, sampled, augmented and mixed.

    A pure function of its arguments, the number of threads apart, which changes nothing. Arrays cross at their stored
    size unless they are cropped at random; everything else at `image_size`. `num_classes` and `smoothing` are
    for soft targets; a batch is computed in `parts`. Of `world` a process reads the rows that it computes, and those
    that are mixed with them; the others are zero. Raises UserError at an unreadable image, unless the split has it left
    out.
    """
    images, wanted = split.images, config.augment
    random_resized = wanted.crop == "random_resized"
    as_stored = images.stored_size is not None and not random_resized
    changes, goes_on = wanted.changes_image, bool(wanted.randaugment or wanted.color_jitter or wanted.erasing)

    def row(index: int, copy: int) -> np.ndarray:
        image = images.read(index)
        if not changes:
            return image if as_stored else _seen(images, index, image, preprocessing, image_size)
        draws = augment.Draws(seed, epoch, index, copy)
        if random_resized:
            box = augment.random_resized_box(draws, (image.shape[0], image.shape[1]), wanted.scale, wanted.ratio)
            image = crop_and_resize(image, box, image_size, preprocessing.interpolation)
        else:
            if wanted.crop == "padded":
                image = augment.padded_crop(draws, image, wanted.padding)
            if not as_stored:
                image = _seen(images, index, image, preprocessing, image_size)
        if wanted.flip and draws.random() < 0.5:
            image = image[:, ::-1]
        if not goes_on:
            return image
        rng = augment.generator(seed, epoch, index, copy)
        image = colour.changed(rng, image, wanted)
        return augment.erase(rng, image, wanted.erasing, preprocessing) if wanted.erasing else image

    def finish(batch: Batch, step: int) -> None:
        if wanted.mixes:
            mix(batch.images, batch.targets, batch.count, wanted, seed, epoch, step)

    size = (images.stored_size if as_stored else None) or (image_size, image_size)
    order = epoch_order(split.labels, config, seed, epoch)
    targets = Targets(split.task, split.labels, config, num_classes, smoothing, parts * world.size)
    own = rows_of(world, targets.batch_size, parts)
    needed = partial(_needed, own, split.unread is not None, wanted.mixes)
    steps = range(start, -(-len(order) // targets.batch_size))
    return _batches(split, order, targets, row, size, config.threads, steps, needed, finish)


def _needed(own: Sequence[slice], leaves_out: bool, mixes: bool, count: int) -> np.ndarray:
    """Of the first ``count`` rows of a batch those that a process reads: its own, and those that are mixed with them.

    All where unreadable images are left out, each of which moves those behind it.
    """
    read = np.full(count, leaves_out)
    for run in own:
        read[run] = True
    return read | read[::-1] if mixes else read


def eval_batches(
    split: Split, config: schema.Data, preprocessing: Preprocessing, image_size: int, world: World = ALONE
) -> Iterator[Batch]:
    """The batches of a split in its own order: arrays at their stored size, files by the evaluation recipe.

    Of `world` a process has every size-th batch.
    """
    images = split.images
    stored = images.stored_size

    def row(index: int, copy: int) -> np.ndarray:
        image = images.read(index)
        return image if stored else _seen(images, index, image, preprocessing, image_size)

    targets, size = Targets(split.task, split.labels, as_evaluated(config), None), stored or (image_size, image_size)
    steps = range(steps_per_epoch(split, targets.batch_size))[world.rank :: world.size]
    return _batches(split, np.arange(split.size), targets, row, size, config.threads, steps)


def _seen(images: Images, index: int, image: np.ndarray, preprocessing: Preprocessing, image_size: int) -> np.ndarray:
    """What the recipe makes of an image. Raises UserError, naming it, where the recipe cannot."""
    try:
        return eval_image(image, preprocessing, image_size)
    except UserError as error:
        raise UserError(f"{images.identifiers[index]}: {error}") from error


def train_features(
    split: Split,
    features: np.ndarray,
    there: np.ndarray,
    config: schema.Data,
    *,
    seed: int,
    epoch: int,
    start: int = 0,
    num_classes: int | None = None,
    smoothing: float = 0.0,
    parts: int = 1,
) -> Iterator[Batch]:
    """What ``train_batches`` gives where nothing is augmented, with features in place of pixels.

    features: float32 ``(size, ...)``, in the split's own order; there: bool ``(size,)``, of which images.
    """
    order = epoch_order(split.labels, config, seed, epoch)
    targets = Targets(split.task, split.labels, config, num_classes, smoothing, parts)
    return _feature_batches(features, there, order, targets, start)


def eval_features(split: Split, features: np.ndarray, there: np.ndarray, config: schema.Data) -> Iterator[Batch]:
    """What ``eval_batches`` gives, with features in place of pixels."""
    targets = Targets(split.task, split.labels, as_evaluated(config), None)
    return _feature_batches(features, there, np.arange(split.size), targets)


def as_evaluated(config: schema.Data) -> schema.Data:
    """As images are evaluated: with their own labels, all counting alike."""
    return config.model_copy(update={"augment": schema.Augment(), "class_weights": "none"})


def _feature_batches(
    features: np.ndarray, there: np.ndarray, order: np.ndarray, targets: Targets, start: int = 0
) -> Iterator[Batch]:
    size = targets.batch_size
    for first in range(start * size, len(order), size):
        indices = order[first : first + size]
        indices = indices[there[indices]]
        rows = np.zeros((size, *features.shape[1:]), np.float32)
        rows[: len(indices)] = features[indices]
        yield Batch(rows, targets.batch(indices), indices, targets.weight(indices))


def _batches(
    split: Split,
    order: np.ndarray,
    targets: Targets,
    row: Callable[[int, int], np.ndarray],
    size: tuple[int, int],
    threads: int,
    numbers: range,
    needed: Callable[[int], np.ndarray] = lambda count: np.ones(count, bool),
    finish: Callable[[Batch, int], None] = lambda batch, step: None,
) -> Iterator[Batch]:
    """Batches, by their numbers, of the rows in `order`, by their index and copy.

    Of so many images those are read that are `needed`; `finish` is called on each whole batch and its number.

    However the consumer leaves, the threads end when the iterator is closed, once each has done what it is doing.
    """
    copies = occurrences(order)
    batch_size = targets.batch_size

    def submit(step: int) -> tuple[Batch, list[Future[list[str | None]]]]:
        whole = slice(step * batch_size, (step + 1) * batch_size)
        indices = order[whole]
        images = np.zeros((batch_size, *size, 3), np.uint8)
        batch = Batch(images, targets.batch(indices), indices, targets.weight(indices))
        places = np.flatnonzero(needed(len(indices)))
        chunks = [places[first : first + CHUNK] for first in range(0, len(places), CHUNK)]
        return batch, [
            pool.submit(_fill, split, row, indices[chunk], copies[whole][chunk], [images[place] for place in chunk])
            for chunk in chunks
        ]

    pending: deque[tuple[int, Batch, list[Future[list[str | None]]]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="mlx-peft-data")
    lost = 0
    try:
        steps = iter(numbers)
        while True:
            while len(pending) <= PREFETCH and (step := next(steps, None)) is not None:
                pending.append((step, *submit(step)))
            if not pending:
                return
            number, batch, futures = pending.popleft()
            reasons = [reason for future in futures for reason in future.result()]
            if any(reasons):
                whole, batch = batch, _left_out(split, batch, reasons, targets)
                lost += whole.count - batch.count
                check_share(split.name, lost, batch.count, whole.count, len(order), reasons)
            finish(batch, number)
            yield batch
    finally:
        # Not waited for: an iterator that was left behind is closed by the garbage collector, in whatever thread that
        # happens to run, and a thread that is only beginning would wait for a lock of its own.
        pool.shutdown(wait=False, cancel_futures=True)


def _put(image: np.ndarray, place: np.ndarray) -> None:
    if image.flags.c_contiguous:
        place[...] = image
    else:  # a flipped one: NumPy is quicker at it a channel at a time
        for channel in range(3):
            place[..., channel] = image[..., channel]


def _left_out(split: Split, batch: Batch, reasons: list[str | None], targets: Targets) -> Batch:
    """The batch without the images that are not there for a reason, which are remembered: the others move up."""
    assert split.unread is not None
    there = np.array([reason is None for reason in reasons])
    for row, reason in zip(batch.rows.tolist(), reasons, strict=True):
        if reason is not None:
            split.unread.add(Broken(split.name, split.images.identifiers[row], reason))
    images, rows = np.zeros_like(batch.images), batch.rows[there]
    images[: len(rows)] = batch.images[: batch.count][there]
    return Batch(images, targets.batch(rows), rows, targets.weight(rows))


def _fill(
    split: Split, row: Callable[[int, int], np.ndarray], indices: np.ndarray, numbers: np.ndarray, out: list[np.ndarray]
) -> list[str | None]:
    """Puts images in their places, and says of each why it is not there, if it is to be left out."""
    reasons: list[str | None] = []
    for index, number, place in zip(indices.tolist(), numbers.tolist(), out, strict=True):
        try:
            with one_image():
                _put(row(index, number), place)
        except UserError as error:
            if split.unread is None:
                raise
            reasons.append(str(error).removesuffix(ADVICE))
        else:
            reasons.append(None)
    return reasons
