"""The optimiser: one step from gradients to the next parameters, in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from mlx_peft.config.rates import Rates
from mlx_peft.config.schema import SGD as SGDConfig
from mlx_peft.config.schema import AdamW as AdamWConfig
from mlx_peft.config.schema import Train
from torch_ref.methods.importance import Importance
from torch_ref.parameters import Arrays

INITIAL_SCALE, SCALE_GROWS_AFTER = 2.0**16, 2000
"""The loss is scaled so under float16 (Micikevicius et al. 2018, section 3.2), with the values that torch takes."""

COUNTED = 2**24
"""As far as float32, in which torch's AdamW counts its steps, can be counted one by one."""

SCALES = ("scale", "good_steps")
"""Only float16 has these entries of the state."""


def adamw(config: AdamWConfig, groups: list[dict]) -> Optimizer:
    return AdamW(groups, config.lr, config.betas, config.eps, fused=True)


def sgd(config: SGDConfig, groups: list[dict]) -> Optimizer:
    return SGD(groups, config.lr, config.momentum, nesterov=config.nesterov, fused=True)


OPTIMIZERS = {"adamw": adamw, "sgd": sgd}


def laid_out(value: Tensor, p: Tensor) -> Tensor:
    """A copy beside a parameter, in its memory's order: a fused optimiser walks through both as they lie."""
    if value.shape != p.shape:
        return value.to(p.device, copy=True)
    return torch.empty_like(p, dtype=value.dtype, requires_grad=False).copy_(value)


def grouped(config: AdamWConfig | SGDConfig, parameters: Arrays, rates: Rates) -> list[dict[str, Any]]:
    """The parameters by how they learn, as groups of torch's optimisers."""
    groups: dict[tuple[bool, float], list[Tensor]] = {}
    for name, p in parameters.items():
        groups.setdefault((rates.decays(name, p.ndim), rates.lr_ratio(name)), []).append(p)
    return [
        {"params": ps, "weight_decay": config.weight_decay if decay else 0.0, "lr_ratio": ratio}
        for (decay, ratio), ps in groups.items()
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
        self.averages = importance.initial(parameters) if importance else {}
        self.clip_norm = config.clip_norm
        self.scaled = config.precision == "float16"
        self.parameters = parameters
        self.loss_scale, self.good_steps = INITIAL_SCALE, 0
        self.steps = 0
        groups = grouped(config.optimizer, parameters, rates)
        self.optimizer = OPTIMIZERS[config.optimizer.name](config.optimizer, groups)

    def scale(self) -> float:
        """What the loss is multiplied by before the backward pass."""
        return self.loss_scale if self.scaled else 1.0

    def __call__(self, lr: float, observe: bool = False) -> None:
        """Steps from the gradients of the scaled loss that lie in the parameters, and clears them."""
        parameters = list(self.parameters.values())
        if self.scaled and self._overflowed(parameters):
            self.optimizer.zero_grad()
            return
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_ratio"]
        if self.steps >= COUNTED:
            for slots in self.optimizer.state.values():
                if "step" in slots:
                    slots["step"].fill_(self.steps)
        self.optimizer.step()
        self.steps += 1
        if self.importance and observe:
            self.importance.observe(self.averages, self.parameters)
        self.optimizer.zero_grad()

    def _overflowed(self, parameters: list[Tensor]) -> bool:
        """Divides the gradients by the scale, then adapts it."""
        for p in parameters:
            p.grad.div_(self.loss_scale)
        if not torch.stack([p.grad.isfinite().all() for p in parameters]).all():
            self.loss_scale, self.good_steps = self.loss_scale / 2, 0
            return True
        self.good_steps += 1
        if self.good_steps >= SCALE_GROWS_AFTER:
            self.loss_scale, self.good_steps = self.loss_scale * 2, 0
        return False

    def state(self) -> Arrays:
        """Moments and counters, by parameter name."""
        slots = {
            f"slots.{name}.{slot}": value
            for name, p in self.parameters.items()
            for slot, value in self.optimizer.state[p].items()
            if value is not None
        }
        slots |= {f"{name}.{p}": value for name, values in self.averages.items() for p, value in values.items()}
        scale = {"scale": torch.tensor(self.loss_scale), "good_steps": torch.tensor(self.good_steps)}
        return slots | (scale if self.scaled else {})

    def shapes(self, state: Arrays) -> dict[str, torch.Size]:
        """What ``state`` should hold: the slots that one parameter has there, each has, a number or of its shape."""
        kinds = {key.rpartition(".")[2] for key in state if key.startswith("slots.")}
        slots = {f"slots.{name}.{kind}": p for name, p in self.parameters.items() for kind in kinds}
        shapes = {key: torch.Size() if key in state and state[key].ndim == 0 else p.shape for key, p in slots.items()}
        return shapes | {f"{name}.{p}": value.shape for name, vs in self.averages.items() for p, value in vs.items()}

    def load_state(self, state: Arrays) -> None:
        """Sets what ``state`` returned, and leaves alone what float16 alone has where that is missing."""
        for name, p in self.parameters.items():
            prefix = f"slots.{name}."
            slots = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            self.optimizer.state[p] = {slot: laid_out(value, p) for slot, value in slots.items()}
        self.steps = max((int(value) for key, value in state.items() if key.endswith(".step")), default=0)
        for average, values in self.averages.items():
            for name, value in values.items():
                value.copy_(state[f"{average}.{name}"])
        if self.scaled and state.keys() >= {*SCALES}:
            self.loss_scale, self.good_steps = float(state["scale"]), int(state["good_steps"])
