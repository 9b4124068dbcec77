"""MLX compiles the step: each way through it is compiled here, and gives what the same operations give one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch  # noqa: F401  before MLX: see mlx_peft.backend.blas

# isort: split
import mlx.core as mx
from comparing import relative

from convert.base import load_base
from mlx_peft.config.schema import Experiment
from mlx_peft.protocols.loading import load_backend
from mlx_peft.protocols.trainer import Trainer

CLASSES, BATCH, SIZE, STEPS, LR = 5, 4, 16, 3, 1e-2

ROUND_OFF = 2.0**-24
"""Relative. A kernel of several operations rounds after each of them, as they do: on Linux nothing differs at all. One
that multiplies and adds at once leaves out a rounding, which Adam's division by small numbers magnifies."""
LOSSES, TRAINED = 100 * ROUND_OFF, 1e-3

LORA: dict[str, Any] = {"name": "lora", "rank": 4, "targets": ["qkv", "fc2"]}
DROPPING = {"drop_path": 0.3, "head_dropout": 0.3}
DEEP = {"patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2}
CODES = {"bits": 4, "group_size": 32}
TOKENS = {"method": LORA, "tokens": {"name": "tome", "r": 1}, "train": {"gradient_checkpointing": True}}
WAYS: dict[str, dict[str, Any]] = {
    "dropout": {"method": LORA | {"dropout": 0.3}, "model": DROPPING},
    "accumulated and clipped": {"method": LORA, "train": {"accumulate": 2, "clip_norm": 0.1}},
    "recomputed": {"method": LORA | {"dropout": 0.3}, "model": DROPPING, "train": {"gradient_checkpointing": True}},
    "float16": {"method": LORA, "train": {"precision": "float16"}},
    "over codes": {"method": LORA, "quantize": CODES},
    "scores observed": {"method": {"name": "adalora", "init_rank": 4, "target_rank": 2, "targets": ["qkv"]}},
    "tokens merged, recomputed": TOKENS | {"model": {"args": DEEP | {"depth": 1}}},
    "everything trained": {"method": {"name": "full"}, "train": {"optimizer": {"name": "sgd", "momentum": 0.9}}},
}
SLOWER: dict[str, dict[str, Any]] = {
    "tokens merged in each block, recomputed": TOKENS | {"model": {"args": DEEP}},
    "tokens led round": {
        "method": LORA,
        "model": {"args": DEEP},
        "tokens": {"name": "skipvit", "keep": 0.5, "from": 0, "to": 1},
    },
    "tokens turned down, recomputed": {
        "method": LORA,
        "model": {"args": DEEP},
        "tokens": {"name": "dyt"},
        "train": {"gradient_checkpointing": True, "accumulate": 2},
    },
}
"""Each kernel of another form is built by g++, which takes time: one reducer in one block is enough for every day."""


def trainer(way: str) -> Trainer:
    model = {
        "name": "vit_tiny_patch16_224", "weights": "none", "image_size": SIZE,
        "args": {"patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 2},
    }  # fmt: skip
    parts = (WAYS | SLOWER)[way]
    experiment = Experiment.model_validate(
        parts | {"model": model | parts.get("model", {}), "data": {"name": "digits", "batch_size": BATCH}}
    )
    base = load_base(experiment.model, CLASSES, 0, experiment.quantize)
    return load_backend("mlx").build_trainer(experiment, CLASSES, base)


def trained(way: str) -> tuple[list[float], dict[str, np.ndarray], np.ndarray]:
    """The losses of some steps, what they lead to, and the logits that it gives."""
    one, random = trainer(way), np.random.default_rng(0)
    more = {"observe": True} if one.scores() else {}
    losses = []
    for _ in range(STEPS):
        images = random.integers(0, 256, (BATCH, SIZE, SIZE, 3), dtype=np.uint8)
        targets = random.integers(0, CLASSES, BATCH).astype(np.int32)
        losses.append(float(one.train_step(images, targets, LR, **more)))
    return losses, dict(one.model.adapter()), one.model.logits(images)


@pytest.mark.parametrize("way", [*WAYS, *(pytest.param(way, marks=pytest.mark.slow) for way in SLOWER)])
def test_a_compiled_step_is_the_step_of_its_operations(way: str, compiled: None) -> None:
    losses, adapter, logits = trained(way)
    mx.disable_compile()
    by_one, expected, evaluated = trained(way)
    coarser = 2**13 if way == "float16" else 1  # by the bits that it has fewer
    assert relative(losses, by_one) <= LOSSES * coarser
    for name, tensor in expected.items():
        assert relative(adapter[name], tensor) <= TRAINED * coarser, name
    assert relative(logits, evaluated) <= TRAINED * coarser
