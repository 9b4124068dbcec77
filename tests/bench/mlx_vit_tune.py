"""The training step that mlx-vit-tune ships: ``mlx-peft bench --beside tests/bench/mlx_vit_tune.py``.

MLX_VIT_TUNE must name a checkout of https://github.com/JamesQFreeman/mlx-vit-tune (compared at commit a474669).
Its gradient checkpointing stays off: under it, its adapters get no gradient. In float32, like the others.
"""

from __future__ import annotations

import os
import sys

import numpy as np

from convert.base import Base
from mlx_peft.backend.entry import multiply, peak_memory, saved_bytes, synchronize, version
from mlx_peft.config.schema import Experiment

sys.path.insert(0, os.environ["MLX_VIT_TUNE"])

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx_vit import FastViTModel
from mlx_vit.trainer import cross_entropy_loss
from mlx_vit.vit import VisionTransformer, ViTConfig

__all__ = ["Loop", "build_trainer", "multiply", "peak_memory", "saved_bytes", "synchronize", "version"]


class Loop:
    """What the body of its training loop does for one batch, in the same order."""

    def __init__(self, experiment: Experiment, num_classes: int, base: Base):
        a = base.architecture
        config = ViTConfig(
            image_size=a.img_size,
            patch_size=a.patch_size,
            embed_dim=a.embed_dim,
            depth=a.depth,
            num_heads=a.num_heads,
            mlp_ratio=a.mlp_ratio,
            num_classes=num_classes,
            dtype=mx.float32,
        )
        model = VisionTransformer(config)  # random weights, float32; it has no preset of this size
        self.model = FastViTModel.get_lora_model(model, rank=experiment.method.rank)
        self.base = base
        self.model.train()
        optimizer = experiment.train.optimizer
        self.optimizer = optim.AdamW(learning_rate=optimizer.lr, weight_decay=optimizer.weight_decay)
        self.loss_and_grad = nn.value_and_grad(self.model, cross_entropy_loss)

    def train_step(self, images: np.ndarray, targets: np.ndarray, lr: float) -> mx.array:
        mean, std = mx.array(self.base.preprocessing.mean), mx.array(self.base.preprocessing.std)
        pixels = (mx.array(images).astype(mx.float32) / 255 - mean) / std
        self.optimizer.learning_rate = mx.array(lr)
        (loss, _), gradients = self.loss_and_grad(self.model, pixels, mx.array(targets))
        self.optimizer.update(self.model, gradients)
        mx.eval(self.model.parameters(), self.optimizer.state)
        return loss


def build_trainer(experiment: Experiment, num_classes: int, base: Base) -> Loop:
    return Loop(experiment, num_classes, base)
