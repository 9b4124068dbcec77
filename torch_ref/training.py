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
        groups = grouped(config.optimizer, parameters, rates)
        self.optimizer = OPTIMIZERS[config.optimizer.name](config.optimizer, groups)
        if self.scaled and self.optimizer.defaults.get("momentum"):
            for p in parameters.values():  # torch would take up what lies in memory, were the first step left out
                self.optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p, requires_grad=False)
        device = next(iter(parameters.values())).device
        # Numbers that the device decides on stay there, and the host does not wait for them.
        self.loss_scale, self.good_steps = torch.tensor(INITIAL_SCALE, device=device), torch.tensor(0, device=device)
        self.steps, self.most_steps = torch.tensor(0, device=device), 0

    def scale(self) -> Tensor | float:
        """What the loss is multiplied by before the backward pass."""
        return self.loss_scale if self.scaled else 1.0

    def __call__(self, lr: float, observe: bool = False) -> None:
        """Steps from the gradients of the scaled loss that lie in the parameters, and clears them."""
        parameters = list(self.parameters.values())
        finite = self._unscaled(parameters) if self.scaled else None
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_ratio"]
        if self.most_steps >= COUNTED:
            for slots in self.optimizer.state.values():
                if "step" in slots:
                    slots["step"].copy_(self.steps)
        self.optimizer.step()
        self.most_steps += 1
        self.steps += 1 if finite is None else finite
        if self.importance and observe:
            self.importance.observe(self.averages, self.parameters, finite)
        self.optimizer.zero_grad()

    def _unscaled(self, parameters: list[Tensor]) -> Tensor:
        """Divides the gradients by the scale, then adapts it. Whether they are finite: if not, the step is left out."""
        for p in parameters:
            p.grad.div_(self.loss_scale)
        finite = torch.stack([p.grad.isfinite().all() for p in parameters]).all()
        grows, scale = self.good_steps + 1 >= SCALE_GROWS_AFTER, self.loss_scale
        self.loss_scale = torch.where(finite, torch.where(grows, scale * 2, scale), scale / 2)
        self.good_steps = torch.where(finite & ~grows, self.good_steps + 1, 0)
        self.optimizer.found_inf = (~finite).float()  # torch's fused kernels read it
        return finite

    def state(self) -> Arrays:
        """Moments and counters, by parameter name."""
        slots = {
            f"slots.{name}.{slot}": value
            for name, p in self.parameters.items()
            for slot, value in self.optimizer.state[p].items()
            if value is not None
        }
        slots |= {f"{name}.{p}": value for name, values in self.averages.items() for p, value in values.items()}
        scale = {"scale": self.loss_scale, "good_steps": self.good_steps}
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
        self.most_steps = max((int(value) for key, value in state.items() if key.endswith(".step")), default=0)
        self.steps.fill_(self.most_steps)
        for average, values in self.averages.items():
            for name, value in values.items():
                value.copy_(state[f"{average}.{name}"])
        if self.scaled and state.keys() >= {*SCALES}:
            self.loss_scale, self.good_steps = (state[name].to(self.steps.device) for name in SCALES)
