"""The optimiser as a function from parameters, slots and gradients to the next ones."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.optimizers import SGD, AdamW, Optimizer, clip_grad_norm
from mlx.utils import tree_flatten, tree_map

from mlx_peft.backend.methods.importance import AVERAGES, Importance
from mlx_peft.backend.parameters import Arrays
from mlx_peft.config.rates import Rates
from mlx_peft.config.schema import SGD as SGDConfig
from mlx_peft.config.schema import AdamW as AdamWConfig
from mlx_peft.config.schema import Train

Slots = dict[str, Any]

INITIAL_SCALE, SCALE_GROWS_AFTER = 2.0**16, 2000
"""The loss is scaled so under float16 (Micikevicius et al. 2018, section 3.2), with the values that torch takes."""

SCALES = ("scale", "good_steps")
"""Only float16 has these entries of the state."""


class _CorrectedAdamW(AdamW):
    """MLX's own has 1 - beta^t as a difference in float32, which has lost most digits where beta is near 1."""

    def correction(self, beta: float) -> mx.array | float:
        """1 - beta^t to float32's rounding, at every beta and step t."""
        return -mx.expm1(self.step.astype(mx.float32) * math.log(beta)) if beta else 1.0

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]) -> mx.array:
        lr, (b1, b2) = self.learning_rate, self.betas
        state["m"] = b1 * state["m"] + (1 - b1) * gradient
        state["v"] = b2 * state["v"] + (1 - b2) * mx.square(gradient)
        root = mx.sqrt(state["v"]) * (1 / self.correction(b2)) ** 0.5 + self.eps
        return parameter * (1 - lr * self.weight_decay) - lr / self.correction(b1) * state["m"] / root


def adamw(config: AdamWConfig, weight_decay: float) -> Optimizer:
    return _CorrectedAdamW(config.lr, list(config.betas), config.eps, weight_decay)


def sgd(config: SGDConfig, weight_decay: float) -> Optimizer:
    return SGD(config.lr, config.momentum, weight_decay, nesterov=config.nesterov)


OPTIMIZERS = {"adamw": adamw, "sgd": sgd}


class Group(NamedTuple):
    """Parameters that share weight decay and learning rate."""

    optimizer: Optimizer
    lr_ratio: float
    names: list[str]


def grouped(config: AdamWConfig | SGDConfig, parameters: Arrays, rates: Rates) -> list[Group]:
    """The parameters by how they learn, each group with an optimiser of its own."""
    groups: dict[tuple[bool, float], list[str]] = {}
    for name, p in parameters.items():
        groups.setdefault((rates.decays(name, p.ndim), rates.lr_ratio(name)), []).append(name)
    make = OPTIMIZERS[config.name]
    return [
        Group(make(config, config.weight_decay if decay else 0.0), ratio, names)
        for (decay, ratio), names in groups.items()
    ]


class Update:
    """One optimiser step: clip, step, and under float16 scale the loss and leave out a step whose gradient overflowed.

    Args:
        config: the experiment's ``train`` section.
        parameters: what is trained, by name.
        rates: how each of them learns.
        importance: what is averaged over the steps that are observed, where the method wants it.
    """

    def __init__(
        self,
        config: Train,
        parameters: Arrays,
        rates: Rates,
        importance: Importance | None = None,
    ):
        self.importance = importance
        self.clip_norm = config.clip_norm
        self.scaled = config.precision == "float16"
        self.groups = {f"group{i}": g for i, g in enumerate(grouped(config.optimizer, parameters, rates))}

    def initial_slots(self, parameters: Arrays) -> Slots:
        """Moments and counters before the first step."""
        slots: Slots = {}
        for name, (optimizer, _, names) in self.groups.items():
            optimizer.init({name: parameters[name] for name in names})
            slots[name] = optimizer.state
        if self.importance:
            slots |= self.importance.initial(parameters)
        if self.scaled:
            slots["scale"], slots["good_steps"] = mx.array(INITIAL_SCALE), mx.array(0)
        return slots

    def scale(self, slots: Slots) -> mx.array | float:
        """What the loss is multiplied by before the backward pass."""
        return slots.get("scale", 1.0)

    def __call__(
        self, parameters: Arrays, slots: Slots, gradients: Arrays, lr: mx.array, observe: bool = False
    ) -> tuple[Arrays, Slots]:
        """The next parameters and slots. ``gradients`` are those of the scaled loss."""
        if self.scaled:
            gradients = tree_map(lambda g: g / slots["scale"], gradients)
        unclipped = gradients
        if self.clip_norm is not None:
            gradients, _ = clip_grad_norm(gradients, self.clip_norm)
        stepped, next_slots = dict(parameters), {}
        for group, (optimizer, ratio, names) in self.groups.items():
            # A copy of each dictionary in it: MLX's optimisers put the new moments in the place of the old ones.
            optimizer.state = tree_map(lambda slot: slot, slots[group]) | {"learning_rate": lr * ratio}
            stepped |= optimizer.apply_gradients({n: gradients[n] for n in names}, {n: parameters[n] for n in names})
            next_slots[group] = optimizer.state
        if self.importance:
            averages = {name: slots[name] for name in AVERAGES}
            next_slots |= self.importance.observed(averages, stepped, gradients) if observe else averages
        if self.scaled:
            return self._unless_overflowed(parameters, slots, unclipped, stepped, next_slots)
        return stepped, next_slots

    def _unless_overflowed(
        self, parameters: Arrays, slots: Slots, gradients: Arrays, stepped: Arrays, next_slots: Slots
    ) -> tuple[Arrays, Slots]:
        finite = mx.stack([mx.isfinite(g).all() for _, g in tree_flatten(gradients)]).all()
        grows = slots["good_steps"] + 1 >= SCALE_GROWS_AFTER
        scale = slots["scale"]
        kept = {name: slots[name] for name in next_slots}
        parameters, next_slots = tree_map(
            lambda new, old: mx.where(finite, new, old), (stepped, next_slots), (parameters, kept)
        )
        next_slots["scale"] = mx.where(finite, mx.where(grows, scale * 2, scale), scale / 2)
        next_slots["good_steps"] = mx.where(finite & ~grows, slots["good_steps"] + 1, 0)
        return parameters, next_slots
