"""Training in PyTorch: gradients of the parts of a batch, summed, and one update in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import SupportsFloat

import numpy as np
import torch
from torch import Tensor

from convert.base import Base
from mlx_peft.config.schema import Experiment
from mlx_peft.core.border import Tensors, must_match
from mlx_peft.core.world import rows_of
from torch_ref import compiling, methods, threads
from torch_ref.device import multiplying, peak_memory
from torch_ref.losses import LOSSES
from torch_ref.model import Model
from torch_ref.models.stochastic import randomness
from torch_ref.parameters import Arrays, load, stored, to_numpy
from torch_ref.training import SCALES, Update
from torch_ref.world import World, world


class Trainer:
    """See ``mlx_peft.protocols.trainer.Trainer``."""

    def __init__(self, experiment: Experiment, num_classes: int, base: Base, ranks: World | None = None) -> None:
        self.experiment, self.world = experiment, ranks or world()
        self.model = Model(
            base,
            num_classes,
            experiment.method,
            seed=experiment.seed,
            qat=experiment.qat,
            tokens=experiment.tokens,
            precision=experiment.train.precision,
            drop_path=experiment.model.drop_path,
            head_dropout=experiment.model.head_dropout,
        )
        self.model.network.checkpointing = experiment.train.gradient_checkpointing
        self.importance = methods.importance(self.model.network, experiment.method)
        self.update = Update(experiment.train, self.model.trained, experiment.rates, self.importance)
        self.keep: tuple[Mapping[str, Sequence[bool]], Arrays] = ({}, {})  # as ``mask`` had it last, and on the device
        self.step = 0
        self._random: bool | None = None  # whether a layer draws
        self._loss = compiling.compiled(self.loss, self.model.device, experiment.train.compile)

    def loss(self, x: Tensor, targets: Tensor, count: Tensor, parts: int = 1) -> Tensor:
        """The loss of one of a batch's parts: its rows' sum / ``count``, and the part's share of the penalties."""
        penalty = methods.penalty(self.model.network, self.experiment.method)
        logits, of_tokens = self.model.forward(x)
        loss = LOSSES[self.model.base.task.name](logits, targets, count, self.experiment.train.label_smoothing)
        return loss + (penalty + of_tokens) / parts

    def loss_of(self, images: np.ndarray, targets: np.ndarray, weight: float, parts: int = 1) -> Tensor:
        """The same of arrays: as a step computes it, which may be compiled."""
        return self._loss(self.model.read(images), self.model.on_device(targets), self._number(weight), parts)

    def _number(self, value: float) -> Tensor:
        """Float32, on the device, which the host does not wait for."""
        return torch.full((), value, device=self.model.device)

    # The protocol.

    def train_step(
        self, images: np.ndarray, targets: np.ndarray, lr: float, *, weight: float | None = None, observe: bool = False
    ) -> SupportsFloat:
        if weight is None:
            weight = self.model.base.task.total_weight(targets)
        with multiplying(self.model.precision):
            loss = self._summed(images, targets, weight)
            self.step += 1  # first, so that one that is broken off in the middle is known by it
            self.update(lr, observe)
        return self.model.crossing.back(loss)

    def _summed(self, images: np.ndarray, targets: np.ndarray, weight: float) -> Tensor:
        """The loss of a batch, the sum of its parts' of all processes; their gradients lie in the parameters then."""
        self.model.network.train()
        try:
            loss = self._of_own_rows(images, targets, weight)
        except Exception as error:
            if self._loss == self.loss or not compiling.is_at_fault(error):
                raise
            compiling.must_do_without(error, self.experiment.train.compile, self.world.rank == 0)
            self._loss = self.loss
            loss = self._of_own_rows(images, targets, weight)
        loss, *summed = self.world.sum([loss, *(p.grad for p in self.model.trained.values())])
        for p, gradient in zip(self.model.trained.values(), summed, strict=True):
            if gradient is not p.grad:
                p.grad.copy_(gradient)  # which lies in memory as the optimiser wants it
        return loss

    def _of_own_rows(self, images: np.ndarray, targets: np.ndarray, weight: float) -> Tensor:
        """The same of the rows that this process computes."""
        parts = self.experiment.train.accumulate
        loss, scale = torch.zeros((), device=self.model.device), self.update.scale()
        self.update.optimizer.zero_grad()  # what a step that was broken off has left
        with randomness(self.experiment.seed << 32 | self.step, self.world.rank):
            for own in rows_of(self.world, len(images), parts):
                loss += self._of_part(images[own], targets[own], weight, parts * self.world.size, scale)
        return loss

    def _of_part(
        self, images: np.ndarray, targets: np.ndarray, weight: float, parts: int, scale: Tensor | float
    ) -> Tensor:
        """The same of one of the batch's parts, of whose rows each thread has some: gradients are added in their order.

        What draws at random, or is compiled, takes all rows at once.
        """
        whole = self._loss != self.loss or self.experiment.qat is not None
        own = threads.shares(len(images), None if whole else self.model.rows)
        if len(own) > 1 and self._draws(images):
            own = [slice(None)]
        trained = [*self.model.trained.values()]

        def differentiated(rows: slice) -> tuple[Tensor, tuple[Tensor, ...]]:
            loss = self.loss_of(images[rows], targets[rows], weight, parts * len(own))
            return loss.detach(), torch.autograd.grad(loss * scale, trained)

        if len(own) == 1:
            loss = self.loss_of(images, targets, weight, parts)
            (loss * scale).backward()
            return loss.detach()
        losses, gradients = zip(*threads.beside(differentiated, own), strict=True)
        for p, first, *others in zip(trained, *gradients, strict=True):
            total = torch.empty_like(p, requires_grad=False).copy_(first)  # in the order in which p lies in memory
            for gradient in others:
                total += gradient
            p.grad = total if p.grad is None else p.grad.add_(total)
        return torch.stack(losses).sum()

    def _draws(self, images: np.ndarray) -> bool:
        """Whether a layer draws at random in training: one image tells, before the first step that is shared."""
        if self._random is None:
            with torch.no_grad(), randomness(0):
                before = torch.get_rng_state()
                self.model.forward(self.model.read(images[:1]))
                self._random = not torch.equal(before, torch.get_rng_state())
        return self._random

    @torch.no_grad()
    def scores(self) -> Tensors:
        if self.importance is None:
            return {}
        found = methods.scores(self.model.network, self.experiment.method, self.importance.scores(self.update.averages))
        return {adapter: to_numpy(values) for adapter, values in found.items()}

    @torch.no_grad()
    def mask(self, keep: Mapping[str, Sequence[bool]]) -> None:
        if keep is not self.keep[0]:
            masks = methods.masks(self.model.network, self.experiment.method, keep)
            self.keep = keep, {name: self.model.on_device(~mask) for name, mask in masks.items()}
        for name, masked in self.keep[1].items():
            self.model.trained[name].masked_fill_(masked, 0.0)

    def loss_and_gradients(self, images: np.ndarray, targets: np.ndarray, scale: float = 1.0) -> tuple[float, Tensors]:
        self.model.network.train()
        weight = self._number(self.model.base.task.total_weight(targets))
        with multiplying(self.model.precision):
            loss = self.loss(self.model.read(images), self.model.on_device(targets), weight)
            gradients = torch.autograd.grad(loss * scale, list(self.model.trained.values()))
        found = {name: to_numpy(g / scale) for name, g in zip(self.model.trained, gradients, strict=True)}
        return float(loss.detach()), found

    def state(self) -> Tensors:
        arrays = {f"parameters.{name}": p.detach() for name, p in stored(self.model.network).items()}
        arrays |= self.update.state()
        return {name: a.cpu().numpy().copy() for name, a in arrays.items()} | {"step": np.array(self.step)}

    def load_state(self, state: Tensors) -> None:
        own = stored(self.model.network)
        expected = {f"parameters.{name}": p.shape for name, p in own.items()} | {"step": ()}
        must_match(state, expected | self.update.shapes(state), optional=SCALES)
        load(self.model.network, {name: state[f"parameters.{name}"] for name in own})
        self.update.load_state({name: torch.from_numpy(a.copy()) for name, a in state.items()})
        self.step = int(state["step"])

    def peak_memory(self) -> int | None:
        return peak_memory()
