"""Features that are computed once: which images are read for them, and when."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch  # noqa: F401  before MLX: see mlx_peft.backend.blas
from PIL import Image
from training.prefixes import TRAINED, VALIDATED, Killed, Watcher, experiment, files

from mlx_peft.adaptation.prefix import Prefix
from mlx_peft.config.schema import Experiment
from mlx_peft.core.errors import UserError
from mlx_peft.data import ArrayImages
from mlx_peft.training.progress import Silent
from mlx_peft.training.stop import Interrupted
from mlx_peft.training.train import train


@pytest.fixture
def reads(engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The splits of images as they are read, one by one, of a fake model that has a prefix."""
    found: list[str] = []
    read = ArrayImages.read

    def noting(self: ArrayImages, index: int) -> np.ndarray:
        found.append(self.source)
        return read(self, index)

    monkeypatch.setattr(ArrayImages, "read", noting)
    monkeypatch.setattr(type(engine.trainer().model), "prefix", Prefix(2, (8,), "the head"))
    return found


def before_features(engine: SimpleNamespace, patch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Lets ``act`` happen before the features of each batch of images are computed."""
    model = type(engine.trainer().model)
    features = model.features

    def acting(self: object, images: np.ndarray) -> np.ndarray:
        if images.dtype == np.uint8:
            act()
        return features(self, images)

    patch.setattr(model, "features", acting)


def augmented(config: Experiment, **augment: Any) -> Experiment:
    return Experiment.model_validate(config.model_dump() | {"data": config.data.model_dump() | {"augment": augment}})


def test_each_image_is_read_once(engine: SimpleNamespace, reads: list[str]) -> None:
    watcher = Watcher()
    result = train(engine.experiment(epochs=5), engine.out, progress=watcher)
    assert reads == ["train"] * TRAINED + ["val"] * VALIDATED + ["test"] * VALIDATED
    size = (TRAINED + VALIDATED) * 8 * 4  # bytes of so many float32
    assert result["cached_features"] == {"before": "the head", "images": TRAINED + VALIDATED, "bytes": size}
    assert json.loads((engine.out / "result.json").read_text()) == result
    assert any("nothing before the head is trained" in note and "once" in note for note in watcher.notes)


def test_a_finished_training_is_resumed_without_reading_training_images(
    engine: SimpleNamespace, reads: list[str]
) -> None:
    class Impatient(Silent):
        def evaluating(self, split: str) -> None:
            if split == "test":
                raise Killed

    with pytest.raises(Killed):
        train(engine.experiment(), engine.out, progress=Impatient())
    reads.clear()
    train(engine.experiment(), engine.out, resume=True)
    assert set(reads) == {"val", "test"}  # of which it keeps what it says


@pytest.mark.parametrize("augment", [{"flip": True}, {"crop": "padded"}, {"crop": "random_resized"}])
def test_augmented_images_are_read_in_every_epoch(
    engine: SimpleNamespace, reads: list[str], augment: dict[str, Any]
) -> None:
    result = train(augmented(engine.experiment(epochs=2), **augment), engine.out)
    assert result["cached_features"] is None
    assert reads.count("train") == 2 * TRAINED


def test_features_beyond_the_limit_are_not_kept_and_the_user_is_told(
    engine: SimpleNamespace, reads: list[str], tmp_path: Path
) -> None:
    needed = (TRAINED + VALIDATED) * 8 * 4 / 1e9
    watcher = Watcher()
    result = train(engine.experiment(epochs=2, cache_features=0.99 * needed), engine.out, progress=watcher)
    assert result["cached_features"] is None
    assert reads.count("train") == 2 * TRAINED
    assert any("more than train.cache_features" in note and "2.1e-06 GB" in note for note in watcher.notes)
    result = train(engine.experiment(epochs=2, cache_features=1.01 * needed), tmp_path / "within")
    assert result["cached_features"] is not None


def test_without_a_validation_split_the_training_images_are_kept(engine: SimpleNamespace, reads: list[str]) -> None:
    engine.install(engine.dataset(val=False, test=False))
    result = train(engine.experiment(), engine.out)
    assert result["cached_features"]["images"] == TRAINED
    assert reads == ["train"] * TRAINED


def test_the_time_that_features_take_is_time_of_training(
    engine: SimpleNamespace, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before_features(engine, monkeypatch, lambda: time.sleep(0.03))
    watcher = Watcher()
    result = train(engine.experiment(epochs=2), engine.out, progress=watcher)
    batches = 6
    assert watcher.epochs[0].seconds >= batches * 0.03
    assert result["time"]["train_seconds"] == sum(event.seconds for event in watcher.epochs)


def test_a_run_may_be_stopped_while_features_are_computed(
    engine: SimpleNamespace, reads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = train(engine.experiment(), tmp_path / "whole")
    reads.clear()
    with monkeypatch.context() as patch:
        before_features(engine, patch, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted) as caught:
            train(engine.experiment(), engine.out)
    assert caught.value.step == 0
    assert reads.count("train") < TRAINED
    found = train(engine.experiment(), engine.out, resume=True)
    assert found["metrics"] == expected["metrics"]
    assert files(engine.out / "adapter") == files(tmp_path / "whole" / "adapter")


def test_a_broken_image_is_left_out_or_refused_as_ever(tmp_path: Path) -> None:
    for name in ("dark", "light"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(6):
            colour = (number * 10 + (150 if name == "light" else 0),) * 3
            Image.new("RGB", (20, 18), colour).save(tmp_path / "images" / name / f"{number}.png")
    image = tmp_path / "images" / "dark" / "5.png"
    whole = image.read_bytes()

    class Breaker(Silent):
        """Breaks the image once the data set is opened."""

        def start(self, step: int, steps: int, epochs: int) -> None:
            image.write_bytes(whole[:40])

    def run(out: str, unreadable: str, progress: Silent | None = None) -> dict[str, Any]:
        data = {"name": "folder", "root": str(tmp_path / "images"), "split": {"val": 0.0}, "unreadable": unreadable}
        return train(experiment("torch", data=data), tmp_path / out, resume=True, progress=progress)

    with pytest.raises(UserError, match=r"dark/5\.png: .*data\.unreadable: skip"):
        run("refuse", "refuse", Breaker())
    skipped = run("skip", "skip")
    assert skipped["cached_features"]["images"] == 11
    assert skipped["notes"] == ["left out, unreadable: 1 (dark/5.png)"]
    assert json.loads((tmp_path / "skip" / "result.json").read_text())["notes"] == skipped["notes"]
    image.write_bytes(whole)
    whole_set = run("refuse", "refuse")
    assert whole_set["cached_features"]["images"] == 12
    assert whole_set["notes"] == []
