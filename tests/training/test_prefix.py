"""Features that are computed once: the run is the one that computes them in every step, only faster."""

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
from comparing import relative
from PIL import Image

from convert.base import load_base
from mlx_peft.adaptation.prefix import Prefix
from mlx_peft.artifacts.examine import evaluate_run
from mlx_peft.artifacts.load import load_run
from mlx_peft.artifacts.predict import predict
from mlx_peft.checks.parity import OVER_CODES
from mlx_peft.config.schema import Experiment
from mlx_peft.core.errors import UserError
from mlx_peft.data import ArrayImages
from mlx_peft.protocols.loading import load_backend
from mlx_peft.training.checkpoint import load_checkpoint
from mlx_peft.training.progress import EpochEvent, Silent, StepEvent
from mlx_peft.training.run import RunFolder, read_metrics
from mlx_peft.training.stop import Interrupted
from mlx_peft.training.train import train
from torch_ref.methods import METHODS

SAME = 1e-5
"""Largest relative difference to the uncached run, float32: features are rounded as they are in another batch, 1e-7,
and a few steps of SGD make that no larger than this."""

TIMINGS = ("images_per_second", "seconds")
TRAINED, VALIDATED = 44, 21
"""Images of the splits."""

VIT = {
    "name": "vit_tiny_patch16_224",
    "weights": "none",
    "image_size": 16,
    "args": {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2},
}
LAST = {"name": "lora", "rank": 2, "blocks": "last 1"}
BOTH = pytest.mark.parametrize("backend", ["mlx", "torch"])


class Watcher(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.epochs: list[EpochEvent] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def epoch(self, event: EpochEvent) -> None:
        self.epochs.append(event)


class Killed(Exception):
    pass


class Killer(Silent):
    """Ends the run as a kill does, without a checkpoint, once so many steps are done."""

    def __init__(self, step: int) -> None:
        self.last = step

    def step(self, event: StepEvent) -> None:
        if event.step == self.last:
            raise Killed


def experiment(
    backend: str,
    method: dict[str, Any] | str = "linear",
    model: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    **options: Any,
) -> Experiment:
    return Experiment.model_validate({
        "backend": backend,
        "model": VIT | (model or {}),
        "method": {"name": method} if isinstance(method, str) else method,
        "data": {"name": "colours", "batch_size": 8, "threads": 1} | (data or {}),
        "train": {"epochs": 2, "optimizer": {"name": "sgd", "lr": 0.05}, "log_every": 1} | options,
    })  # fmt: skip


def untimed(run: Path) -> list[dict[str, float]]:
    lines = read_metrics(run / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def close(a: np.ndarray | float, b: np.ndarray | float) -> bool:
    return bool(relative(np.asarray(a), b) <= SAME)


RUNS: dict[str, dict[str, Any]] = {
    "linear": {"model": {"head_dropout": 0.3}, "clip_norm": 1.0, "label_smoothing": 0.1},
    "distilled, in bfloat16": {
        "model": {"name": "deit_tiny_distilled_patch16_224", "head_dropout": 0.3}, "precision": "bfloat16"
    },
    "last block": {"method": {**LAST, "dropout": 0.2}, "model": {"head_dropout": 0.1}},
    "last block, in parts": {
        "method": {"name": "bitfit", "blocks": [-1]}, "accumulate": 2, "gradient_checkpointing": True
    },
}  # fmt: skip


@BOTH
@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS.keys())
def test_the_run_is_the_uncached_one(colours: None, tmp_path: Path, backend: str, options: dict[str, Any]) -> None:
    cached = train(experiment(backend, **options), tmp_path / "cached")
    plain = train(experiment(backend, **options, cache_features=0), tmp_path / "plain")
    assert cached["cached_features"]["images"] == TRAINED + VALIDATED
    assert plain["cached_features"] is None
    ours, theirs = untimed(tmp_path / "cached"), untimed(tmp_path / "plain")
    assert len(ours) == len(theirs) == 2 * 6 + 2
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        assert all(close(one[key], other[key]) for key in other), (one, other)
    last = (load_checkpoint(RunFolder(tmp_path / name).last)[0] for name in ("cached", "plain"))
    state, expected = last
    assert all(close(state[name], expected[name]) for name in expected)
    assert cached["selected"] == plain["selected"]


@BOTH
@pytest.mark.parametrize("name", [name for name in METHODS if name not in OVER_CODES])
def test_every_method_computes_the_same_from_features_as_from_images(backend: str, name: str) -> None:
    blocks = {} if name == "linear" else {"blocks": "last 1"}
    config = experiment(backend, {"name": name} | blocks, {"args": {**VIT["args"], "embed_dim": 48}})  # type: ignore[dict-item]
    trainer = load_backend(backend).build_trainer(config, 5, load_base(config.model, 5, 0))
    random = np.random.default_rng(0)
    start = {
        key: value + 0.05 * random.standard_normal(value.shape).astype(np.float32)
        for key, value in sorted(trainer.model.adapter().items())
    }
    trainer.model.load_adapter(start)
    images = random.integers(0, 256, (4, 16, 16, 3), np.uint8)
    assert trainer.model.prefix is not None
    assert trainer.model.prefix.end == (3 if name == "linear" else 1)
    features = trainer.model.features(images)
    assert features.dtype == np.float32
    assert features.shape == (4, *trainer.model.prefix.shape)
    assert close(trainer.model.logits(features), trainer.model.logits(images))
    targets = np.array([0, 1, 2, 4], np.int32)
    (loss, gradients), (expected, wanted) = (trainer.loss_and_gradients(x, targets) for x in (features, images))
    assert close(loss, expected)
    assert all(close(gradients[key], wanted[key]) for key in wanted)


@BOTH
@pytest.mark.parametrize("method", ["linear", LAST], ids=["linear", "last block"])
def test_a_run_that_was_killed_in_mid_epoch_ends_with_the_same_bytes(
    colours: None, tmp_path: Path, backend: str, method: Any
) -> None:
    config = experiment(backend, method, {"head_dropout": 0.2}, checkpoint_every=4)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config, whole)
    for step in (3, 7, 11):  # before there is a checkpoint, and after those of the steps 4 and 8
        with pytest.raises(Killed):
            train(config, parts, resume=True, progress=Killer(step))
    train(config, parts, resume=True)
    assert untimed(parts) == untimed(whole)
    assert files(parts / "adapter") == files(whole / "adapter")


@BOTH
def test_what_was_trained_on_features_is_evaluated_and_predicts_on_images(
    colours: None, tmp_path: Path, backend: str
) -> None:
    run = tmp_path / "run"
    result = train(experiment(backend), run)
    found = evaluate_run(run, "val")
    assert found["top1"] == result["metrics"]["val"]["top1"]
    assert close(found["loss"], result["metrics"]["val"]["loss"])
    Image.new("RGB", (16, 16), (200, 20, 20)).save(tmp_path / "red.png")
    predictions = predict(load_run(run), [tmp_path / "red.png"])[0]["predictions"]
    assert {row["class"] for row in predictions} == {"red", "green", "blue"}


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


def test_a_finished_training_is_resumed_without_reading_its_images(engine: SimpleNamespace, reads: list[str]) -> None:
    class Impatient(Silent):
        def evaluating(self, split: str) -> None:
            if split == "test":
                raise Killed

    with pytest.raises(Killed):
        train(engine.experiment(), engine.out, progress=Impatient())
    reads.clear()
    train(engine.experiment(), engine.out, resume=True)
    assert set(reads) == {"test"}


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
