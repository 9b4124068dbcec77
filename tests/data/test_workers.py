"""Processes that make rows: the very pixels that threads make, of every kind of set, whatever happens to them."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data.pipelines import AUGMENTS, BICUBIC, content, data, train
from hanging import HUNG
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.data import ArrayImages, Dataset, EncodedImages, Split, cached, crew, eval_batches, open_dataset
from mlx_peft.data import given as given_images
from mlx_peft.data.unread import Unread

COUNT = 20


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty images of three formats and of different sizes."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for row in range(COUNT):
        path = folder / "ab"[row % 2] / f"{row}.{('png', 'jpg', 'webp')[row % 3]}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (30 + row, 50 - row, 3), np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def kinds(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Split]:
    """The same images as each kind of set has them."""
    config = schema.Data(
        name="folder",
        root=root,
        split=schema.Split(val=0),
        cache=schema.Cache(gigabytes=0.1, folder=tmp_path_factory.mktemp("cache")),
    )
    opened = open_dataset(config)
    files = opened.train
    pixels = np.random.default_rng(1).integers(0, 256, (COUNT, 20, 20, 3), np.uint8)
    bytes_of = [(root / path).read_bytes() for path in files.images.identifiers]
    return {
        "files": files,
        "decoded cache": cached(opened, config).train,
        "table": replace(files, images=EncodedImages(bytes_of.__getitem__, "train", np.arange(COUNT))),
        "arrays": replace(files, images=ArrayImages.whole(pixels, "train")),
        "grey arrays": replace(files, images=ArrayImages.whole(pixels[..., 0], "train")),
        "of a notebook": replace(files, images=given_images.Seen(files.images, BICUBIC, 24)),
    }


@pytest.fixture(scope="module", autouse=True)
def none_stays() -> Iterator[None]:
    yield
    crew._crews.clear()


def by(workers: str, config: schema.Data) -> schema.Data:
    return config.model_copy(update={"workers": workers})


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["files", "decoded cache", "table", "arrays", "grey arrays", "of a notebook"]),
    augment=st.sampled_from(sorted(AUGMENTS)),
    batch_size=st.integers(2, COUNT + 3),
    threads=st.integers(1, 2),
    epoch=st.integers(0, 3),
    start=st.integers(0, 2),
)
def test_processes_make_the_very_rows_that_threads_make(
    kinds: dict[str, Split], kind: str, augment: str, batch_size: int, threads: int, epoch: int, start: int
) -> None:
    config = data(augment, batch_size, threads)
    expected = train(kinds[kind], by("threads", data(augment, batch_size, 3)), epoch=epoch, start=start)
    found = train(kinds[kind], by("processes", config), epoch=epoch, start=start)
    assert content(found) == content(expected)
    assert [batch.rows.tolist() for batch in found] == [batch.rows.tolist() for batch in expected]


@pytest.mark.parametrize("kind", ["files", "decoded cache", "table", "arrays", "of a notebook"])
def test_what_is_measured_on_is_the_same(kinds: dict[str, Split], kind: str) -> None:
    one, other = (
        content(list(eval_batches(kinds[kind], by(workers, data(batch_size=9)), BICUBIC, 24)))
        for workers in ("threads", "processes")
    )
    assert one == other


def broken(kinds: dict[str, Split], kind: str) -> Split:
    """The set with its fourth image damaged."""
    contents = [kinds["table"].images.encoded(row) for row in range(COUNT)]  # type: ignore[attr-defined]
    contents[3] = contents[3][: len(contents[3]) // 2]
    if kind == "damaged":
        cell = contents.__getitem__
    else:

        def cell(row: int) -> bytes:
            if row == 3:
                raise UserError("train, row 3: its image is missing")
            return contents[row]

    return replace(kinds["files"], images=EncodedImages(cell, "train", np.arange(COUNT)))


@pytest.mark.parametrize("kind", ["damaged", "missing"])
def test_an_unreadable_image_is_told_in_the_same_words(kinds: dict[str, Split], kind: str) -> None:
    split, told = broken(kinds, kind), []
    for workers in ("threads", "processes"):
        with pytest.raises(UserError, match=r"train[/,] ?(row )?3: .*set data\.unreadable: skip|is missing") as caught:
            train(split, by(workers, data("flip")))
        told.append(str(caught.value))
    assert told[0] == told[1]


def test_an_unreadable_image_is_left_out_alike(kinds: dict[str, Split]) -> None:
    found = []
    for workers in ("threads", "processes"):
        split = replace(broken(kinds, "damaged"), unread=Unread())
        batches = train(split, by(workers, data("flip")))
        found.append((content(batches), [batch.count for batch in batches], split.unread.of("train")))
    assert found[0] == found[1]
    assert len(found[0][2]) == 1


def test_they_stay_from_epoch_to_epoch_and_from_training_to_validation(kinds: dict[str, Split]) -> None:
    config = by("processes", data("flip", threads=2))
    train(kinds["files"], config)
    before = pids()
    train(kinds["arrays"], config, epoch=1)
    list(eval_batches(kinds["files"], config, BICUBIC, 24))
    assert before
    assert set(before) <= set(pids())


def test_those_that_nobody_wants_end_and_are_started_again(
    kinds: dict[str, Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "IDLE", 1)
    crew._crews.clear()
    config = by("processes", data("flip", threads=1))
    expected = content(train(kinds["files"], by("threads", config)))
    assert content(train(kinds["files"], config)) == expected
    (process,) = processes()
    assert process.wait(HUNG) == 0
    assert content(train(kinds["files"], config)) == expected
    crew._crews.clear()


def processes() -> list[subprocess.Popen[bytes]]:
    return [one.process for one in crew._crews[0].workers if one.process is not None]


def pids() -> list[int]:
    return [process.pid for process in processes()]


def test_a_process_that_is_killed_between_two_chunks_is_told_of_too(kinds: dict[str, Split]) -> None:
    crew._crews.clear()  # of several processes one that was killed may never be asked again
    config = by("processes", data("flip", threads=1))
    train(kinds["files"], config)
    (process,) = processes()
    process.kill()
    process.wait()
    with pytest.raises(UserError, match=r"was ended by SIGKILL"):
        train(kinds["files"], config)
    assert content(train(kinds["files"], config)) == content(train(kinds["files"], by("threads", config)))
    crew._crews.clear()


def test_a_forked_process_has_none_of_its_parent_s(kinds: dict[str, Split]) -> None:
    train(kinds["files"], by("processes", data("flip")))
    child = os.fork()
    if child == 0:
        threading.Timer(20, os._exit, (1,)).start()
        os._exit(len(crew._crews))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert crew._crews


def test_a_data_set_is_opened_and_read_by_them_as_ever(root: Path) -> None:
    config = by("processes", schema.Data(name="folder", root=root, batch_size=8))
    opened: Dataset = open_dataset(config)
    assert opened.val is not None
    rows = [row for batch in eval_batches(opened.val, config, BICUBIC, 24) for row in batch.rows.tolist()]
    assert rows == list(range(opened.val.size))
