"""Hugging Face's peft on timm's model, behind the protocol of what a benchmark times.

Only LoRA: it is what ``bench`` sets beside ours, with the same weights, the same batch and torch's own AdamW.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import timm
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from convert.adapters.targeting import named_out
from convert.base import Base
from mlx_peft.config.schema import Experiment, Precision
from mlx_peft.tasks.single_label import SINGLE_LABEL
from torch_ref import compiling
from torch_ref.device import DTYPES, device, multiplying, peak_memory, synchronize, use, version
from torch_ref.losses import cross_entropy
from torch_ref.measured import kept_bytes
from torch_ref.models.preprocess import preprocess
from torch_ref.parameters import to_numpy

__all__ = ["Peer", "build_trainer", "multiply", "peak_memory", "saved_bytes", "synchronize", "version"]


class Peer:
    """timm's model under ``get_peft_model``, trained the way its documentation shows."""

    def __init__(self, experiment: Experiment, num_classes: int, base: Base):
        self.base, self.device = base, device()
        size = base.architecture.img_size
        args = {"img_size": size, **experiment.model.args}
        model = timm.create_model(base.name, pretrained=False, num_classes=num_classes, **args)
        model.load_state_dict({name: torch.from_numpy(np.asarray(t)) for name, t in base.tensors.items()})
        method = experiment.method
        patterns = {"rank_pattern": method.rank_pattern, "alpha_pattern": method.alpha_pattern, "peft_type": "LORA"}
        config = LoraConfig(
            r=method.rank, lora_alpha=method.alpha, lora_dropout=method.dropout, use_rslora=method.rslora,
            use_dora=method.dora,
            **named_out(patterns, [site.path for site in method.sites(base.architecture)], ["head"]),
        )  # fmt: skip
        self.model = get_peft_model(model, config).to(self.device)
        self.trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        optimizer = experiment.train.optimizer
        groups = [
            {"params": [p for p in self.trained.values() if (p.ndim > 1) is decays], "weight_decay": rate}
            for decays, rate in ((True, optimizer.weight_decay), (False, 0.0))
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=optimizer.lr)
        self.precision = experiment.train.precision
        self._loss = compiling.compiled(self._loss_of, self.device, experiment.train.compile)

    @contextmanager
    def _numbers(self) -> Iterator[None]:
        """The precision of what is computed within it, by torch's autocast; peft's adapters stay in float32."""
        dtype = DTYPES[self.precision]
        with multiplying(self.precision), torch.autocast(self.device.type, dtype, dtype != torch.float32):
            yield

    def _pixels(self, images: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(images).to(self.device)
        x = preprocess(pixels, self.base.preprocessing, self.base.architecture.img_size, torch.float32)
        return x.permute(0, 3, 1, 2)

    def _logits(self, images: np.ndarray) -> Tensor:
        return self.model(self._pixels(images))

    def _loss_of(self, pixels: Tensor, targets: Tensor, count: Tensor) -> Tensor:
        return cross_entropy(self.model(pixels), targets, count, 0.0)

    def loss(self, images: np.ndarray, targets: np.ndarray) -> Tensor:
        count = torch.full((), SINGLE_LABEL.total_weight(targets), device=self.device)
        with self._numbers():
            return self._loss(self._pixels(images), torch.from_numpy(targets).to(self.device), count)

    def train_step(self, images: np.ndarray, targets: np.ndarray, lr: float) -> Tensor:
        self.model.train()
        loss = self.loss(images, targets)
        with multiplying(self.precision):
            loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    @torch.inference_mode()
    def logits(self, images: np.ndarray) -> np.ndarray:
        self.model.eval()
        with self._numbers():
            return to_numpy(self._logits(images))


def build_trainer(experiment: Experiment, num_classes: int, base: Base) -> Peer:
    """The model on the experiment's device, and its optimiser."""
    use(experiment.device)
    return Peer(experiment, num_classes, base)


def saved_bytes(trainer: Peer, images: np.ndarray, targets: np.ndarray) -> int:
    """Bytes of activations that a step's forward pass keeps for its backward one."""
    trainer.model.train()
    return kept_bytes(lambda: trainer.loss(images, targets), trainer.model.parameters())


def multiply(batch: int, m: int, k: int, n: int, precision: Precision = "float32") -> None:
    """None: torch's products are measured of our own backend."""
