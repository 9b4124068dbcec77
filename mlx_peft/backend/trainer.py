"""Training in MLX: gradients of a batch's parts, summed, and one update, each a compiled function of its arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map_with_path

from convert.base import Base
from mlx_peft.backend import forks, methods
from mlx_peft.backend.device import peak_memory
from mlx_peft.backend.installed import installed
from mlx_peft.backend.losses import LOSSES
from mlx_peft.backend.model import Model
from mlx_peft.backend.models.stochastic import randomness
from mlx_peft.backend.parameters import Arrays, stored, to_numpy, to_tensors
from mlx_peft.backend.training import SCALES, Update
from mlx_peft.backend.world import World, world
from mlx_peft.config.schema import Experiment
from mlx_peft.core.border import Tensors, must_match
from mlx_peft.core.world import rows_of


class Trainer:
    """See ``mlx_peft.protocols.trainer.Trainer``. One thread must own it, as it must the model."""

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
        self.slots = self.update.initial_slots(self.model.trained)
        self.step = 0
        self.keep: tuple[Mapping[str, Sequence[bool]], Arrays] = ({}, {})  # as ``mask`` had it last, and on the device
        self._gradients = mx.compile(self._loss_and_gradients)
        # Both without and with an observation.
        self._update = {observe: mx.compile(partial(self.update, observe=observe)) for observe in (False, True)}
        mx.eval(self.slots)
        mx.reset_peak_memory()

    # Traced functions: every array comes in as an argument, and goes out as a result.

    def loss(self, trained: Arrays, images: mx.array, targets: mx.array, count: mx.array, parts: int = 1) -> mx.array:
        """The loss of one of a batch's parts: its rows' sum / ``count``, and the part's share of the penalties."""
        with installed(self.model.network, trained):
            penalty = methods.penalty(self.model.network, self.experiment.method)
            logits, of_tokens = self.model.forward(images)
            loss = LOSSES[self.model.base.task.name](logits, targets, count, self.experiment.train.label_smoothing)
            return loss + (penalty + of_tokens) / parts

    def _loss_and_gradients(
        self, frozen: Arrays, trained: Arrays, images: mx.array, targets: mx.array, count: mx.array, scale: mx.array,
        key: mx.array,
    ) -> tuple[mx.array, Arrays]:  # fmt: skip
        def scaled(trained: Arrays) -> tuple[mx.array, mx.array]:
            loss = self.loss(trained, images, targets, count, self.experiment.train.accumulate * self.world.size)
            return loss * scale, loss

        self.model.network.train()
        # Over the backward pass too, in which what is checkpointed is traced again.
        with installed(self.model.network, frozen), randomness(key):
            (_, loss), gradients = mx.value_and_grad(scaled)({**trained})
        return loss, gradients

    # The protocol.

    def train_step(
        self, images: np.ndarray, targets: np.ndarray, lr: float, *, weight: float | None = None, observe: bool = False
    ) -> mx.array:
        forks.check()
        if weight is None:
            weight = self.model.base.task.total_weight(targets)
        loss, gradients = self._summed(images, targets, weight)
        trained, self.slots = self._update[observe](self.model.trained, self.slots, gradients, mx.array(lr))
        del gradients  # so that each is let go of once it was used
        self.model.put(trained)
        self.step += 1
        mx.async_eval(loss, trained, self.slots)
        return loss

    def _summed(self, images: np.ndarray, targets: np.ndarray, weight: float) -> tuple[mx.array, Arrays]:
        """Loss and gradients of a batch, the sums of its parts' of all processes; where there are several parts or
        processes, they have been waited for."""
        key, parts = mx.random.key(self.experiment.seed << 32 | self.step), self.experiment.train.accumulate
        of_all = parts * self.world.size
        keys = [*mx.random.split(key, of_all)][self.world.rank :: self.world.size] if of_all > 1 else [key]
        count, scale = mx.array(weight, mx.float32), mx.array(self.update.scale(self.slots))
        loss = mx.array(0.0)
        total: Arrays = {}
        for key, own in zip(keys, rows_of(self.world, len(images), parts), strict=True):
            part, gradients = self._gradients(
                self.model.frozen, self.model.trained, mx.array(images[own]), mx.array(targets[own]), count, scale, key
            )
            total = {name: total[name] + g for name, g in gradients.items()} if total else gradients
            loss = loss + part
            if parts > 1:
                # In the order in which processes exchange them: the norm that clips them is summed as they lie.
                total = {name: mx.contiguous(g) for name, g in total.items()}
                mx.eval(loss, total)  # lets go of this part's activations before whatever is next
        loss, *summed = self.world.sum([loss, *total.values()])
        return loss, dict(zip(total, summed, strict=True))

    def scores(self) -> Tensors:
        forks.check()
        if self.importance is None:
            return {}
        found = methods.scores(self.model.network, self.experiment.method, self.importance.scores(self.slots))
        mx.eval(found)
        return {adapter: np.array(values) for adapter, values in found.items()}

    def mask(self, keep: Mapping[str, Sequence[bool]]) -> None:
        if keep is not self.keep[0]:
            masks = methods.masks(self.model.network, self.experiment.method, keep)
            self.keep = keep, {name: mx.array(mask) for name, mask in masks.items()}
        self.model.put({name: mx.where(mask, self.model.trained[name], 0.0) for name, mask in self.keep[1].items()})

    def loss_and_gradients(self, images: np.ndarray, targets: np.ndarray, scale: float = 1.0) -> tuple[float, Tensors]:
        def scaled(trained: Arrays) -> mx.array:
            return self.loss(trained, mx.array(images), mx.array(targets), count) * scale

        forks.check()
        self.model.network.train()
        count = mx.array(self.model.base.task.total_weight(targets), mx.float32)
        loss, gradients = mx.value_and_grad(scaled)({**self.model.trained})  # a copy: a dictionary keeps what is traced
        unscaled = {name: gradient / scale for name, gradient in gradients.items()}
        return float(loss) / scale, to_tensors(self.model.network, unscaled)

    def state(self) -> Tensors:
        forks.check()
        arrays = tree_flatten({"parameters": stored(self.model.network), "slots": self.slots})
        return {name: to_numpy(a) for name, a in arrays} | {"step": np.array(self.step)}

    def load_state(self, state: Tensors) -> None:
        arrays = tree_flatten({"parameters": stored(self.model.network), "slots": self.slots})
        expected = {name: a.shape for name, a in arrays} | {"step": ()}
        must_match(state, expected, optional=[f"slots.{name}" for name in SCALES])
        self.model.put({name: mx.array(state[f"parameters.{name}"]) for name in stored(self.model.network)})
        # Same nesting and same order: a compiled function takes its arguments' leaves as they come.

        def found(name: str, slot: mx.array) -> mx.array:
            return mx.array(state[f"slots.{name}"]) if f"slots.{name}" in state else slot

        self.slots = tree_map_with_path(found, self.slots)
        self.step = int(state["step"])

    def peak_memory(self) -> int | None:
        return peak_memory()
