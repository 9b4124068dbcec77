"""The pipeline's threads: they are gone when the consumer is, and prepare only a few batches ahead."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from data.pipelines import BICUBIC, data, train
from hanging import HUNG
from PIL import Image

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.data import (
    ArrayImages,
    Split,
    open_dataset,
    train_batches,
)
from mlx_peft.data.ahead import PREFETCH


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("mlx-peft-data")]


def all_end() -> bool:
    """Whether the threads end, once each has done what it is doing."""
    for thread in workers():
        thread.join(timeout=HUNG)
    return not workers()


def test_threads_are_gone_when_the_consumer_stops_early(files: Split) -> None:
    batches = train_batches(files, data(batch_size=2, threads=4), BICUBIC, 32, seed=0, epoch=0)
    next(batches)
    assert workers()
    batches.close()  # type: ignore[attr-defined]
    assert all_end()


def test_an_iterator_that_was_left_behind_waits_for_no_thread(files: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """The garbage collector closes it in any thread, in one too that cannot wait for others."""
    batches = train_batches(files, data(batch_size=2), BICUBIC, 32, seed=0, epoch=0)
    next(batches)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "join", lambda *_: pytest.fail("waited for a thread"))
        batches.close()  # type: ignore[attr-defined]
    assert all_end()


def test_threads_are_gone_when_the_consumer_raises(files: Split) -> None:
    def consume() -> None:
        for _batch in train_batches(files, data(batch_size=2), BICUBIC, 32, seed=0, epoch=0):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    assert all_end()


def test_a_broken_image_ends_the_epoch_by_name_and_leaves_no_threads(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        Image.new("RGB", (9, 9)).save(tmp_path / "ab"[number % 2] / f"{number}.png")
    split = open_dataset(schema.Data(name="folder", root=tmp_path, split=schema.Split(val=0))).train
    whole = (tmp_path / "b" / "3.png").read_bytes()
    (tmp_path / "b" / "3.png").write_bytes(whole[: len(whole) // 2])  # damaged after it was checked
    with pytest.raises(UserError, match=r"b/3\.png: not a readable image"):
        train(split, data(batch_size=2))
    assert all_end()


def test_no_more_than_a_few_batches_are_prepared_ahead(arrays: Split) -> None:
    read = []

    class Counted(ArrayImages):
        def read(self, index: int) -> np.ndarray:
            read.append(index)
            return super().read(index)

    images = Counted(arrays.images.pixels, "train", arrays.images.rows)  # type: ignore[attr-defined]
    batches = train_batches(Split("train", images, arrays.labels), data(batch_size=4), BICUBIC, 32, seed=0, epoch=0)
    next(batches)
    while len(read) < 4 * (1 + PREFETCH):
        time.sleep(0.01)
    time.sleep(0.1)  # for one more, which should not come
    assert len(read) == 4 * (1 + PREFETCH)
    batches.close()  # type: ignore[attr-defined]
