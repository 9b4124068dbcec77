"""A training loop that is written by hand: its optimiser, and one step of it."""

from __future__ import annotations

import numpy as np
import torch

from mlx_peft.config.rates import Rates
from mlx_peft.config.schema import AdamW as AdamWConfig
from mlx_peft.core.errors import UserError
from mlx_peft.library.standing import Standing
from torch_ref import methods
from torch_ref.losses import LOSSES
from torch_ref.models.stochastic import randomness
from torch_ref.models.vit import VisionTransformer
from torch_ref.parameters import Arrays, trained
from torch_ref.training import grouped


class AdamW(torch.optim.AdamW):
    """The trainer's AdamW, in the trainer's groups, used as torch's own: ``optimizer.step()``.

    m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; p = p (1 - lr w) - lr m' / (sqrt(v') + eps), m' = m / (1 - b1^t) and
    v' = v / (1 - b2^t) (Kingma and Ba 2015; Loshchilov and Hutter 2019).

    Args:
        parameters: what is trained, by name.
        config: learning rate and all else.
        rates: which of them decay, and how fast each learns beside ``lr``.
        standing: of the network that they are in.
    """

    def __init__(self, parameters: Arrays, config: AdamWConfig, rates: Rates, standing: Standing):
        super().__init__(grouped(config, parameters, rates), config.lr, config.betas, config.eps, fused=True)
        self.names, self.standing = parameters.keys(), standing
        self.register_step_pre_hook(lambda *_: standing.must_last())
        self.lr = config.lr

    def __repr__(self) -> str:
        """A line: its groups have a name for each parameter."""
        return f"AdamW(lr={self.lr:g}, {len(self.names)} parameters)"

    @property
    def lr(self) -> float:
        """The learning rate, which may be set between any two steps."""
        group = self.param_groups[0]
        return group["lr"] / group["lr_ratio"]

    @lr.setter
    def lr(self, lr: float) -> None:
        for group in self.param_groups:
            group["lr"] = lr * group["lr_ratio"]


def optimizer(model: VisionTransformer, config: AdamWConfig) -> AdamW:
    """The optimiser of what is trained in a model as it stands."""
    return AdamW(trained(model), config, Rates(model.method, model.qat), model.standing)


def step(
    model: VisionTransformer,
    optimizer: AdamW,
    images: np.ndarray,
    targets: np.ndarray,
    weight: float,
    smoothing: float,
    seed: int,
) -> float:
    """One update by a batch, the trainer's; its loss, with the method's penalty and the reducer's, before it.

    Args:
        images: uint8 ``(batch, height, width, 3)``.
        targets: as the model's task has them.
        weight: what the sum of the rows' losses is divided by.
        smoothing: label smoothing.
        seed: of what is dropped.

    Raises:
        UserError: the optimiser is that of other parameters, or of another model.
    """
    optimizer.standing.must_be(model.standing)
    if strangers := sorted(trained(model).keys() - optimizer.names):
        raise UserError(f"the optimiser was made before {strangers[0]} was trained: make it after add_adapter")
    model.train()
    optimizer.zero_grad()
    with randomness(seed):
        (logits, of_tokens), y = model.run(model.pixels(images)), torch.from_numpy(targets).to(model.head.weight.device)
        penalty = 0.0 if model.method is None else methods.penalty(model, model.method)
        loss = LOSSES[model.base.task.name](logits, y, weight, smoothing) + (penalty + of_tokens)
        loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())
