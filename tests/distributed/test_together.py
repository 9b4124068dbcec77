"""Whatever one of several processes meets, all make the same exchanges, and the first one alone tells it."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import fake_backend
import numpy as np
import pytest
import torch
from distributed.threads import play
from halves import daily
from safetensors.numpy import load
from training.fitting import Watcher

import torch_ref.device
import torch_ref.world
from mlx_peft.adaptation.prefix import Prefix
from mlx_peft.core.errors import UserError
from mlx_peft.core.world import Lost, World, packed, together
from mlx_peft.data import ArrayImages, Dataset
from mlx_peft.training import prepare
from mlx_peft.training.prefix import Cache
from mlx_peft.training.ranks import agreed
from mlx_peft.training.run import read_metrics
from mlx_peft.training.train import train


def of_each(patch: pytest.MonkeyPatch, *datasets: Dataset | UserError) -> None:
    """Has each process open a data set of its own, or fail to."""

    def opened(*_: Any) -> Dataset:
        found = datasets[fake_backend.world().rank]
        if isinstance(found, UserError):
            raise found
        return found

    patch.setattr(prepare, "open_dataset", opened)


def must_be_told_by_the_first(ends: list[Any], text: str) -> None:
    told, *others = ends
    assert isinstance(told, UserError) and text in str(told), told
    assert all(isinstance(end, SystemExit) and end.code == 2 for end in others), others


def small(dataset: Dataset) -> Dataset:
    rows = np.arange(5)
    return replace(dataset, **{name: split.take(rows, name) for name, split in dataset.splits.items()})


RUNS: dict[str, tuple[Dataset, dict[str, Any]]] = {
    "whole": (fake_backend.make_dataset(), {}),
    "saved often": (fake_backend.make_dataset(), {"checkpoint_every": 1}),
    "without validation": (fake_backend.make_dataset(val=False), {}),
    "without a test": (fake_backend.make_dataset(test=False), {}),
    "stopped early": (fake_backend.make_dataset(), {"epochs": 9, "early_stopping": 1}),
    "smaller than a batch": (small(fake_backend.make_dataset()), {}),
}


@pytest.mark.parametrize("kind", daily(RUNS, "saved often", "smaller than a batch", "without validation"))
def test_a_run_is_made_finished_and_made_longer(
    engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    dataset, options = RUNS[kind]
    engine.install(dataset)
    made = engine.experiment(**options)
    longer = engine.experiment(**options | {"epochs": 12, "early_stopping": None})
    first, again, more = (
        play(monkeypatch, lambda _, to=experiment: train(to, engine.out, resume=True))
        for experiment in (made, made, longer)
    )
    assert first[1] == again[1] == more[1] == {}
    assert first[0] == again[0] and first[0]["environment"]["processes"] == "2"
    assert json.loads((engine.out / "result.json").read_text()) == more[0]
    epochs = [line["epoch"] for line in read_metrics(engine.out / "metrics.jsonl") if "train_loss" in line]
    assert epochs == [*range(1, 13)]


def test_what_one_cannot_open_is_told_by_the_first_and_nothing_is_written(
    engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name of a file may be no UTF-8."""
    dataset = engine.dataset()
    of_each(monkeypatch, dataset, UserError("caf\udce9.png cannot be read"))
    ends = play(monkeypatch, lambda _: train(engine.experiment(), engine.out))
    must_be_told_by_the_first(ends, "rank 1 of 2: caf\\udce9.png cannot be read")
    assert not engine.out.exists()


def test_all_train_on_the_same_images(engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    of_each(monkeypatch, engine.dataset(), small(engine.dataset()))
    ends = play(monkeypatch, lambda _: train(engine.experiment(), engine.out))
    must_be_told_by_the_first(ends, "rank 1 of 2: this process has other images than the first one")
    assert not engine.out.exists()


def test_an_image_that_one_cannot_read_ends_all_with_a_checkpoint(
    engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = iter(range(12))

    class Failing(ArrayImages):
        """Images of which only some are read before the disk is gone."""

        def read(self, index: int) -> np.ndarray:
            if next(reads, None) is None:
                raise UserError(f"{self.identifiers[index]} cannot be read")
            return super().read(index)

    whole = engine.dataset()
    images = whole.train.images
    failing = Failing(images.pixels, images.source, images.rows)
    of_each(monkeypatch, whole, replace(whole, train=replace(whole.train, images=failing)))
    watcher = Watcher()

    def work(world: World) -> object:
        return train(engine.experiment(), engine.out, progress=None if world.rank else watcher)

    must_be_told_by_the_first(play(monkeypatch, work), "rank 1 of 2: train/")
    # It read the half of three batches of 8.
    assert watcher.notes == ["a checkpoint is written, after step 3: the run can go on from there"]


def test_one_that_ends_in_the_test_is_told_with_the_command_that_goes_on(
    engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ending(Watcher):
        def evaluating(self, split: str) -> None:
            if split == "test":
                raise RuntimeError

    def work(world: World) -> object:
        return train(engine.experiment(), engine.out, progress=Ending() if world.rank else None)

    told, other = play(monkeypatch, work)
    assert isinstance(told, Lost) and isinstance(other, RuntimeError)
    assert told.command is not None and told.command.words == ("train", str(engine.out))


def test_features_are_kept_by_all_or_by_none(engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(Prefix(1, (2, 3), "the head"), 65)
    kept: dict[bool, list[Cache | None]] = {}
    notes = Watcher()
    for all_have_room in (True, False):

        def work(world: World, room: bool = all_have_room) -> object:
            run = prepare.prepare(engine.experiment(), Watcher())
            return agreed(world, replace(run, cache=cache if room or not world.rank else None), notes).cache

        kept[all_have_room] = play(monkeypatch, work)
    assert kept == {True: [cache, cache], False: [None, None]}
    assert notes.notes == ["another process has no room for the features: they are computed in every epoch"]


def test_tensors_are_packed_whatever_order_their_memory_has() -> None:
    tensors = {"a": np.arange(6.0).reshape(2, 3).T, "b": np.array(7)}
    found = load(packed(tensors))
    assert {name: value.tolist() for name, value in found.items()} == {"a": [[0, 3], [1, 4], [2, 5]], "b": 7}


def test_an_error_of_the_first_keeps_what_it_says_besides(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(world: World) -> None:
        with together(world):
            if world.rank == 0:
                raise UserError("no room", arguments=("out",))

    ends = play(monkeypatch, work)
    must_be_told_by_the_first(ends, "no room")
    assert ends[0].arguments == ("out",)


@pytest.fixture
def meeting_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torchrun says that the processes meet."""
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1")


@pytest.mark.usefixtures("meeting_place")
def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch_ref.device, "_named", None)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="no more than there are here, 1"):
        torch_ref.world.World()
