"""All images of a data set read, each once, in as many sittings as it takes: what was read before an end that came too
early is not read again."""

from __future__ import annotations

import struct
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.data.checked import BEGUN, WHOLE, Memory
from mlx_peft.data.dataset import ADVICE, Dataset, EncodedImages, FileImages, Images, Split
from mlx_peft.data.looking import Watch, each, unwatched
from mlx_peft.data.memory import one_image
from mlx_peft.data.reading import stored_as
from mlx_peft.data.seen import LOOK, seen, there

EVERY = 300.0
"""After so many seconds what was found is written down, since a process may be killed."""


@dataclass(frozen=True, eq=False)
class Looks:
    """What was found of all images of a set, split after split.

    records: LOOKs ``(n,)``, of zeros where an image is broken; broken: why, by row. before: how many were read in
    earlier sittings.
    """

    records: np.ndarray
    broken: dict[int, str]
    before: int


@contextmanager
def all_read(
    dataset: Dataset, threads: int, config: schema.Data | None = None, watch: Watch = unwatched
) -> Iterator[Looks]:
    """Reads every image, whatever other commands remember; none is kept, and none that is broken ends it.

    config: names the set. What was found is then remembered until the block is done, so that an interrupt, here or in
    the block, loses nothing; and which images can be read is remembered for all commands. None: nothing is.
    """
    splits = list(dataset.splits.values())
    marks = [split.images.marks(watch) for split in splits if isinstance(split.images, FileImages | EncodedImages)]
    if config is None or len(marks) < len(
        splits
    ):  # arrays, which nothing tells from others, and which are read at once
        marks = [np.zeros(split.size, np.uint64) for split in splits]
        begun, whole = Memory(None, BEGUN), Memory(None, WHOLE)
    else:
        begun, whole = Memory.of(config, BEGUN), Memory.of(config, WHOLE)
    mark = np.concatenate(marks)
    records, broken = np.zeros(len(mark), LOOK), dict[int, str]()
    known = begun.find(mark, records)
    records[~known] = np.zeros((), LOOK)

    def remember() -> None:
        begun.keep(mark, records, there(records))

    what = "reading the images that an earlier check did not come to" if known.any() else "reading the images"
    try:
        said = time.monotonic()
        for row, found in _looks(splits, np.flatnonzero(~known).tolist(), threads, what, watch):
            if isinstance(found, str):
                broken[row] = found
            else:
                records[row] = found
            if time.monotonic() - said > EVERY:
                remember()
                said = time.monotonic()
        whole.keep(mark, None, there(records))
        yield Looks(records, broken, int(known.sum()))
    except BaseException:
        remember()
        raise
    begun.forget()


def _looks(
    splits: Sequence[Split], rows: Sequence[int], threads: int, what: str, watch: Watch
) -> Iterator[tuple[int, np.void | str]]:
    """Each of the rows, which are numbered split after split, with what was found there."""
    starts = np.cumsum([0, *(split.size for split in splits)]).tolist()

    def look(row: int) -> np.void | str:
        part = bisect_right(starts, row) - 1
        return _look(splits[part].images, row - starts[part])

    return zip(rows, each(look, rows, threads, what, watch), strict=True)


def _look(images: Images, row: int) -> np.void | str:
    """A LOOK; of a broken image, why it is."""
    with one_image():
        try:
            image = images.read(row)
        except UserError as error:
            return str(error).removesuffix(ADVICE)
        colour = not (np.array_equal(image[..., 0], image[..., 1]) and np.array_equal(image[..., 0], image[..., 2]))
        form = stored_as(images.encoded(row)) if isinstance(images, FileImages | EncodedImages) else "array"
        content = seen(image).tobytes() + struct.pack("<II?24s", *image.shape[:2], colour, form.encode())
        found: np.void = np.frombuffer(content, LOOK)[0]
        return found
