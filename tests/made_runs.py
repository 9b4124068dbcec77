"""Folders of runs as training leaves them, made without any training."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlx_peft.config.files import dump
from mlx_peft.config.schema import Experiment
from mlx_peft.core.sums import write_with_sums
from mlx_peft.training.predictions import Predictions, encoded
from mlx_peft.training.run import configuration_id, run_id

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def answered(share: float, images: int, *, seed: int, hard: np.ndarray | None = None) -> Predictions:
    """Logits of so many images of CLASSES of which about this share is right; the harder ones are wrong first."""
    random = np.random.default_rng(seed)
    labels = np.arange(images) % len(CLASSES)
    order = np.random.default_rng(0).random(images) if hard is None else hard
    right = order + 0.25 * random.standard_normal(images) < np.quantile(order, share)
    logits = random.standard_normal((images, len(CLASSES))).astype(np.float32)
    said = np.where(right, labels, (labels + random.integers(1, len(CLASSES), images)) % len(CLASSES))
    logits[np.arange(images), said] = 4 + np.abs(logits[np.arange(images), said])
    names = np.array([f"test/{CLASSES[label]}/{at:05}.png" for at, label in enumerate(labels)])
    return Predictions(names, logits, labels)


def experiment(method: Mapping[str, Any], dataset: str, seed: int, **more: Any) -> Experiment:
    values = {"seed": seed, "model": {"name": "vit_small_patch14_dinov2"}, "method": dict(method),
              "data": {"name": dataset}, "train": {"epochs": 5}} | more  # fmt: skip
    return Experiment.model_validate(values)


def make(
    folder: Path,
    config: Experiment,
    share: float,
    *,
    images: int = 200,
    predictions: bool = True,
    adapter: int = 100_000,
    peak: int = 400_000_000,
    seconds: float = 20.0,
    classes: Iterable[str] = CLASSES,
    **more: Any,
) -> dict[str, Any]:
    """A finished run; its ``result.json``."""
    folder.mkdir(parents=True)
    said = answered(share, images, seed=config.seed + hash_of(folder.name))
    found = np.argmax(said.logits, axis=1)
    top1 = float((found == said.labels).mean())
    confusion = np.zeros((len(CLASSES), len(CLASSES)), int)
    np.add.at(confusion, (said.labels, found), 1)
    splits = {"train": {"size": 800, "sha256": "a" * 64}, "val": {"size": 200, "sha256": "b" * 64},
              "test": {"size": images, "sha256": "c" * 64}}  # fmt: skip
    epochs = range(1, config.train.epochs + 1)
    jitter = np.random.default_rng(config.seed).normal(0, 0.01, len(epochs))
    val = [top1 * (1 - 0.5 / epoch**1.5) + noise for epoch, noise in zip(epochs, jitter.tolist(), strict=True)]
    records = [{"step": 25 * epoch, "epoch": epoch, "train_loss": 2 / epoch, "val_top1": max(0.0, min(1.0, value)),
                "val_loss": 2.5 / epoch**0.5} for epoch, value in zip(epochs, val, strict=True)]  # fmt: skip
    result = {
        "run_id": run_id(config, splits),
        "configuration_id": configuration_id(config, splits),
        "status": "finished",
        "backend": config.backend,
        "model": config.model.name,
        "method": config.method.name,
        "dataset": config.data.name,
        "seed": config.seed,
        "metrics": {"val": {"top1": val[-1], "loss": 2.5 / len(epochs) ** 0.5, "count": 200},
                    "test": {"top1": top1, "loss": 1.1, "count": images, "ece": 0.05}},
        "details": {"test": {"classes": [*classes], "confusion": confusion.tolist(), "per_class": {},
                             "reliability": {}}},
        "selected": {"epoch": len(epochs), "by": "val.top1"},
        "parameters": {"adapter": adapter, "head": 3850, "trainable": adapter + 3850, "total": 21_540_490},
        "time": {"train_seconds": seconds * len(epochs), "epoch_seconds": seconds, "images_per_second": 800 / seconds},
        "memory": {"peak_bytes": peak, "arrays_bytes": None, "process_bytes": peak},
        "preprocessing": IMAGENET,
        "splits": splits,
        "environment": {"python": "3.11", "framework": "torch 2.14 (cpu)"},
    } | more  # fmt: skip
    files = {
        "config.yaml": dump(config).encode(),
        "metrics.jsonl": "".join(json.dumps(record) + "\n" for record in records).encode(),
        "result.json": json.dumps(result).encode(),
    }
    files |= {"predictions.npz": encoded({"test": said})} if predictions else {}
    write_with_sums(folder, files)
    return result


def hash_of(name: str) -> int:
    """A small number of a name, the same in every process."""
    return sum(map(ord, name.split("-seed")[0]))
