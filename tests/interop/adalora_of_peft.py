"""AdaLoRA of ours and of PEFT's on one small model of timm's."""

from __future__ import annotations

from typing import Any

import numpy as np
import peft
from peft_reference import PREFIX

from convert.base import Base, load_base
from mlx_peft.config.methods import AdaLoRA
from mlx_peft.config.schema import Experiment

NAME, CLASSES, SIZE, STEPS, LR = "vit_tiny_patch16_224", 3, 32, 60, 3e-3
SIZES = {"patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}
NAMES = ("a", "b", "c")
TARGETS = r".*blocks\.\d+\..*\.(fc1|proj|qkv)"
SCHEDULE = AdaLoRA(
    init_rank=6, target_rank=2, alpha=9, t_init=8, t_final=15, delta_t=3, orth_weight=0, targets=("qkv", "proj", "fc1")
)

LOGITS = 1e-5
"""Relative; float32, with the weights formed on one side only."""

TRAINED = 1e-3
"""Relative, after 60 steps of AdamW, which magnifies rounding by its division by small numbers."""


def experiment(method: AdaLoRA) -> Experiment:
    return Experiment.model_validate({
        "model": {"name": NAME, "weights": "none", "image_size": SIZE, "args": SIZES},
        "method": method.model_dump(),
        "data": {"name": "digits", "batch_size": 4},
        "train": {"clip_norm": 1.0, "optimizer": {"name": "adamw", "weight_decay": 0.0}},
    })  # fmt: skip


def base() -> Base:
    return load_base(experiment(SCHEDULE).model, CLASSES, seed=1)


def peft_config(method: AdaLoRA, **more: Any) -> peft.AdaLoraConfig:
    options = {
        "init_r": method.init_rank, "target_r": method.target_rank, "lora_alpha": method.alpha, "tinit": method.t_init,
        "tfinal": method.t_final, "deltaT": method.delta_t, "total_step": STEPS, "target_modules": TARGETS,
        "modules_to_save": ["head"], "beta1": method.beta1, "beta2": method.beta2,
    }  # fmt: skip
    return peft.AdaLoraConfig(**(options | more))


def peft_name(name: str) -> str:
    """A trainer's name for a parameter in PEFT's model."""
    path, _, last = name.rpartition(".")
    return f"{PREFIX}head.modules_to_save.default.{last}" if path == "head" else f"{PREFIX}{path}.{last}.default"


def images(step: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(step)
    return random.integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8), random.integers(0, CLASSES, 4, dtype=np.int32)
