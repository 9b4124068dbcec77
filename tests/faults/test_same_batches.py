"""What the model is shown, to the byte: the same for any number of threads, for both backends, and after a resume."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch  # noqa: F401  before MLX: see mlx_peft.backend.blas
from PIL import Image

# isort: split

import mlx_peft.backend.trainer
import torch_ref.trainer
from mlx_peft.config.schema import Experiment
from mlx_peft.training.progress import Silent, StepEvent
from mlx_peft.training.stop import Interrupted
from mlx_peft.training.train import train

TRAINERS = {"mlx": mlx_peft.backend.trainer.Trainer, "torch": torch_ref.trainer.Trainer}
EPOCHS, STEPS = 2, 7  # of 50 images in batches of 8
AUGMENT = {
    "crop": "random_resized",
    "flip": True,
    "randaugment": {},
    "erasing": {"fill": "noise"},
    "mixup": 0.8,
    "cutmix": 1.0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(60):
        path = root / "abc"[number % 3] / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (6, 7, 3), np.uint8)
        Image.fromarray(pixels).resize((40 + number, 60 - number // 2), Image.Resampling.BICUBIC).save(path)
    return root


def experiment(backend: str, folder: Path, threads: int, method: str = "lora", **data: Any) -> Experiment:
    return Experiment.model_validate({
        "backend": backend,
        "model": {
            "name": "vit_tiny_patch16_224",
            "weights": "none",
            "image_size": 16,
            "args": {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3},
        },
        "method": {"name": method},
        "data": {
            "name": "folder", "root": folder, "batch_size": 8, "threads": threads,
            "split": {"val": 0, "test": 0.15}, "augment": AUGMENT, **data,
        },
        "train": {"epochs": EPOCHS},
    })  # fmt: skip


def shown(
    monkeypatch: pytest.MonkeyPatch, config: Experiment, out: Path, stop_after: int | None = None
) -> tuple[list[str], bytes]:
    """A hash of each batch that the trainer trained on, and the adapter; interrupted once, where asked for."""
    seen: list[str] = []
    trainer = TRAINERS[config.backend]
    original = trainer.train_step

    def spy(self: Any, images: np.ndarray, targets: np.ndarray, lr: float, **rest: Any) -> Any:
        seen.append(hashlib.sha256(images.tobytes() + targets.tobytes()).hexdigest())
        return original(self, images, targets, lr, **rest)

    class Impatient(Silent):
        def step(self, event: StepEvent) -> None:
            if event.step == stop_after:
                os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_step", spy)
        if stop_after:
            with pytest.raises(Interrupted):
                train(config, out, progress=Impatient())
            assert stop_after <= len(seen) < EPOCHS * STEPS
        train(config, out, resume=bool(stop_after))
    return seen, (out / "adapter" / "adapter_model.safetensors").read_bytes()


def test_threads_backends_and_a_resume_in_mid_epoch_change_no_byte(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, adapters = {}, {}
    for backend, threads, stop_after in (
        ("mlx", 1, None), ("mlx", 2, 3), ("mlx", 8, None),
        ("torch", 1, None), ("torch", 2, 10), ("torch", 8, None),
    ):  # fmt: skip
        key = backend, threads
        out = tmp_path / f"{backend}-{threads}"
        batches[key], adapters[key] = shown(monkeypatch, experiment(backend, folder, threads), out, stop_after)
    first = batches["mlx", 1]
    assert len(first) == len(set(first)) == EPOCHS * STEPS
    assert all(found == first for found in batches.values())
    for backend in TRAINERS:
        assert adapters[backend, 1] == adapters[backend, 2] == adapters[backend, 8]


@pytest.mark.parametrize("options", [{"sampling": "class"}, {"class_weights": "balanced", "augment": {}}], ids=str)
def test_so_it_is_with_sampling_and_with_weights_on_kept_features(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    one, two = (experiment("torch", folder, threads, "linear", **options) for threads in (1, 2))
    whole, adapter = shown(monkeypatch, one, tmp_path / "whole")
    parts, same = shown(monkeypatch, two, tmp_path / "parts", stop_after=4)
    assert parts == whole
    assert same == adapter
