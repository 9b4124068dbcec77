"""A training loop that is written by hand: its optimiser, and one step of it."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.optimizers import Optimizer
from mlx.utils import tree_flatten, tree_unflatten

from mlx_peft.backend import methods
from mlx_peft.backend.losses import LOSSES
from mlx_peft.backend.models.stochastic import randomness
from mlx_peft.backend.models.vit import VisionTransformer
from mlx_peft.backend.parameters import Arrays, trained
from mlx_peft.backend.training import grouped
from mlx_peft.config.rates import Rates
from mlx_peft.config.schema import AdamW as AdamWConfig
from mlx_peft.core.errors import UserError
from mlx_peft.library.standing import Standing


class AdamW(Optimizer):
    """The trainer's AdamW, in the trainer's groups, used as MLX's own: ``optimizer.update(model, gradients)``.

    m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; p = p (1 - lr w) - lr m' / (sqrt(v') + eps), m' = m / (1 - b1^t) and
    v' = v / (1 - b2^t) (Kingma and Ba 2015; Loshchilov and Hutter 2019). This is torch's; MLX's own leaves m' = m and
    v' = v unless ``bias_correction`` is set, and its first steps are then many times as long.

    Args:
        parameters: what is trained, by name.
        config: learning rate and all else.
        rates: which of them decay, and how fast each learns beside ``lr``.
        standing: of the network that they are in.
    """

    def __init__(self, parameters: Arrays, config: AdamWConfig, rates: Rates, standing: Standing):
        super().__init__()
        self.groups = grouped(config, parameters, rates)
        self.names, self.standing = parameters.keys(), standing
        for group in self.groups:
            group.optimizer.init({name: parameters[name] for name in group.names})
        self.lr = config.lr

    def __repr__(self) -> str:
        """A line: its groups have a name for each parameter."""
        return f"AdamW(lr={self.lr:g}, {len(self.names)} parameters)"

    @property
    def lr(self) -> float:
        """The learning rate, which may be set between any two steps."""
        return self._lr

    @lr.setter
    def lr(self, lr: float) -> None:
        self._lr = lr
        for group in self.groups:
            group.optimizer.learning_rate = lr * group.lr_ratio

    @property
    def learning_rate(self) -> float:
        """``lr``, as MLX calls it."""
        return self.lr

    @learning_rate.setter
    def learning_rate(self, lr: float) -> None:
        self.lr = lr

    @property
    def step(self) -> mx.array:
        """How many updates there were."""
        return self.groups[0].optimizer.step

    @property
    def state(self) -> list[dict]:
        """Moments and counters of each group, as ``mx.compile`` takes them."""
        return [group.optimizer.state for group in self.groups]

    @state.setter
    def state(self, state: list[dict]) -> None:
        for group, own in zip(self.groups, state, strict=True):
            group.optimizer.state = own

    def apply_gradients(self, gradients: dict, parameters: dict) -> dict:
        """The next parameters, from trees of gradients and of parameters, which may be more.

        Raises UserError where a gradient is that of a parameter which was not there when the optimiser was made.
        """
        self.standing.must_last()
        found, there = dict(tree_flatten(gradients)), dict(tree_flatten(parameters))
        if strangers := sorted(found.keys() - self.names):
            raise UserError(f"the optimiser was made before {strangers[0]} was trained: make it after add_adapter")
        stepped: Arrays = {}
        for optimizer, _, names in self.groups:
            own = [name for name in names if name in found]
            stepped |= optimizer.apply_gradients({n: found[n] for n in own}, {n: there[n] for n in own})
        return tree_unflatten(list(stepped.items()))


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

    def loss(x: mx.array, y: mx.array) -> mx.array:
        penalty = 0.0 if model.method is None else methods.penalty(model, model.method)
        logits, of_tokens = model.run(x)
        loss = LOSSES[model.base.task.name](logits, y, mx.array(weight, mx.float32), smoothing)
        return loss + (penalty + of_tokens)

    optimizer.standing.must_be(model.standing)
    model.train()
    with randomness(seed):
        value, gradients = nn.value_and_grad(model, loss)(model.pixels(images), mx.array(targets))
    optimizer.update(model, gradients)
    mx.eval(value, model.trainable_parameters(), optimizer.state)
    return float(value)
