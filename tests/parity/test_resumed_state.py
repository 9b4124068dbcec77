"""Under every method, a trainer's state goes through a file into another trainer, which takes the same steps on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convert.base import Base, load_base
from mlx_peft.checks.matrix import METHODS, OVER_CODES, PLAIN_METHODS
from mlx_peft.config.schema import Experiment
from mlx_peft.protocols.loading import load_backend
from mlx_peft.protocols.trainer import Trainer
from mlx_peft.training.checkpoint import load_checkpoint, save_checkpoint

CLASSES, BATCH, LR = 3, 4, 1e-2

SITES: dict[str, Any] = {"targets": ["qkv", "proj", "fc1", "fc2"]}
"""Weights that are higher than wide (qkv, fc1), square (proj) and wider than high (fc2)."""
ROWS: dict[str, dict[str, Any]] = {
    **{row: METHODS[row].options | (SITES if "targets" in METHODS[row].options else {}) for row in METHODS},
    "lora-pissa-dora": {"rank": 8, "init": "pissa", "dora": True, **SITES},
    "lora-pissa-parts": {"rank": 8, "init": "pissa", "targets": ["q", "v", "fc1"]},
    "adalora-parts": METHODS["adalora"].options,
}
QUICK = [
    *(("torch", row) for row in ("lora-pissa", "lora-dora", "adalora-parts", "qalora", "vera", "fact", "full")),
    *(("mlx", row) for row in ("lora-pissa", "adalora-parts")),  # which takes longer to compile than to run
]
"""Of each way in which what is trained comes to be. The slow test has all of them in both."""


def make(backend: str, row: str, **train: Any) -> tuple[Experiment, Base]:
    name = row.partition("-")[0]
    known = METHODS.get(row)
    experiment = Experiment.model_validate({
        "backend": backend,
        "model": {
            "name": "vit_tiny_patch16_224", "weights": "none", "image_size": 16,
            "args": {"patch_size": 8, "embed_dim": 64, "depth": 2 if "blocks" in row else 1, "num_heads": 2},
        },
        "method": {"name": name, **ROWS[row]},
        "quantize": {"bits": 4, "group_size": 32} if name in OVER_CODES else None,
        "qat": None if known is None or known.qat is None else {"group_size": 32, **known.qat},
        "data": {"name": "none"},
        "train": train,
    })  # fmt: skip
    return experiment, load_base(experiment.model, CLASSES, experiment.seed, experiment.quantize)


def step(trainer: Trainer, number: int) -> float:
    rng = np.random.default_rng(number)
    images = rng.integers(0, 256, (BATCH, 16, 16, 3), dtype=np.uint8)
    more = {"observe": True} if trainer.scores() else {}
    return float(trainer.train_step(images, rng.integers(0, CLASSES, BATCH).astype(np.int32), LR, **more))


def check(backend: str, row: str, folder: Path, **train: Any) -> None:
    experiment, base = make(backend, row, **train)
    build = load_backend(backend).build_trainer
    first = build(experiment, CLASSES, base)
    for number in range(3):
        step(first, number)
    state, adapter = first.state(), first.model.adapter()
    for name, tensors in (("last", state), ("best", adapter)):
        save_checkpoint(folder / name, tensors)
        found, _ = load_checkpoint(folder / name)
        assert found.keys() == tensors.keys()
        for key, tensor in tensors.items():
            np.testing.assert_array_equal(found[key], tensor, strict=True, err_msg=f"{name}: {key}")

    second = build(experiment, CLASSES, base)
    second.load_state(load_checkpoint(folder / "last")[0])
    for number in range(3, 6):
        assert step(first, number) == step(second, number)
    for name, tensor in first.model.adapter().items():
        np.testing.assert_array_equal(second.model.adapter()[name], tensor, err_msg=name)
    second.model.load_adapter(load_checkpoint(folder / "best")[0])
    for name, tensor in adapter.items():
        np.testing.assert_array_equal(second.model.adapter()[name], tensor, err_msg=name)


@pytest.mark.parametrize(("backend", "row"), QUICK)
def test_a_state_that_went_through_a_file_takes_the_same_steps(backend: str, row: str, tmp_path: Path) -> None:
    check(backend, row, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("backend", ["mlx", "torch"])
@pytest.mark.parametrize("row", ROWS)
def test_a_state_of_any_method_that_went_through_a_file_takes_the_same_steps(
    backend: str, row: str, tmp_path: Path
) -> None:
    check(backend, row, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("backend", ["mlx", "torch"])
@pytest.mark.parametrize("row", ["lora-pissa", "full", "adalora"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_so_does_one_of_sgd(backend: str, row: str, momentum: float, tmp_path: Path) -> None:
    check(backend, row, tmp_path, optimizer={"name": "sgd", "lr": 0.01, "momentum": momentum})


def test_every_plain_method_is_among_them() -> None:
    assert set(PLAIN_METHODS) <= set(ROWS)


def test_moments_are_laid_out_as_their_parameters() -> None:
    """A fused optimiser walks through memory, so a moment of another order than its parameter is another moment."""
    experiment, base = make("torch", "lora")
    first, second = (load_backend("torch").build_trainer(experiment, CLASSES, base) for _ in range(2))
    for trainer in (first, second):  # as whoever makes a parameter from a transposed array has it
        for p in trainer.model.trained.values():
            p.data = p.data.t().contiguous().t()
    for number in range(3):
        step(first, number)
    second.load_state(first.state())
    for name, p in second.model.trained.items():
        assert second.update.optimizer.state[p]["exp_avg"].stride() == p.stride()
        torch.testing.assert_close(p, first.model.trained[name], rtol=0, atol=0)
    assert step(first, 3) == step(second, 3)
    for name, tensor in first.model.adapter().items():
        np.testing.assert_array_equal(second.model.adapter()[name], tensor, err_msg=name)
