"""Features that are computed once: the run is the one that computes them in every step, only faster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch  # noqa: F401  before MLX: see mlx_peft.backend.blas
from comparing import relative
from PIL import Image
from training.prefixes import TRAINED, VALIDATED, VIT, Killed, Killer, experiment, files

from convert.base import load_base
from mlx_peft.artifacts.examine import evaluate_run
from mlx_peft.artifacts.load import load_run
from mlx_peft.artifacts.predict import predict
from mlx_peft.checks.matrix import OVER_CODES
from mlx_peft.protocols.loading import load_backend
from mlx_peft.training.checkpoint import load_checkpoint
from mlx_peft.training.run import RunFolder, read_metrics
from mlx_peft.training.train import train
from torch_ref.methods import METHODS

SAME = 1e-5
"""Largest relative difference to the uncached run, float32: features are rounded as they are in another batch, 1e-7,
and a few steps of SGD make that no larger than this."""

TIMINGS = ("images_per_second", "seconds")

LAST = {"name": "lora", "rank": 2, "blocks": "last 1"}
BOTH = pytest.mark.parametrize("backend", ["mlx", "torch"])


def untimed(run: Path) -> list[dict[str, float]]:
    lines = read_metrics(run / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]


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


@pytest.mark.one_in(2)
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


@pytest.mark.one_in(2)
@BOTH
@pytest.mark.parametrize("name", [name for name in METHODS if name not in OVER_CODES])
def test_every_method_computes_the_same_from_features_as_from_images(backend: str, name: str) -> None:
    blocks = {} if name == "linear" else {"blocks": "last 1"}
    config = experiment(backend, {"name": name} | blocks, {"args": {**VIT["args"], "embed_dim": 64}})  # type: ignore[dict-item]
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


@pytest.mark.one_in(2)
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
