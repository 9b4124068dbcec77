"""What is decided between steps about the ranks of a method that deals them out: once, in NumPy, for any backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mlx_peft.config.methods import AdaLoRA, MethodConfig
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.core.text import counted
from mlx_peft.protocols.trainer import Trainer

Kept = dict[str, list[bool]]
"""For each adapter, which of its triplets are not masked. A dictionary is never changed, only replaced."""


def ranks(kept: Kept) -> dict[str, int]:
    """How many triplets each adapter has left."""
    return {path: sum(triplets) for path, triplets in kept.items()}


class RankAllocator:
    """AdaLoRA's budget (Zhang et al. 2023, arXiv 2303.10512, section 3.3), as Hugging Face PEFT 0.21 deals it out.

    Steps t are counted from 1, so that t of them are done when t is decided on: exactly ``t_init`` of a run's T steps
    pass before anything may be masked, and exactly ``t_final`` follow the last decision. In between a decision falls
    on every t that ``delta_t`` divides, and on T - t_final itself. The triplets of all layers compete: masked are those
    whose score is at most the k-th smallest, k being what the budget leaves out (equal scores may so mask more). Before
    T - t_final a masked triplet goes on being trained, and may be worth keeping at the next decision; after it, it is
    masked again at each step.

    Args:
        method: the ranks and the schedule.
        steps: T.

    Raises:
        UserError: where the schedule does not fit into the run.
    """

    def __init__(self, method: AdaLoRA, steps: int) -> None:
        self.method = method
        self.last = steps - method.t_final
        """The step of the last decision."""
        self.prunes = method.target_rank < method.init_rank
        self.kept: Kept = {}
        if method.t_init + method.t_final >= steps:
            raise UserError(
                f"method.t_init {method.t_init} + method.t_final {method.t_final} leave no step to prune in: "
                f"the run has {steps} in all, and the sum of the two should be smaller"
            )
        if self.prunes and self.last < 2:
            raise UserError(
                f"method.t_final {method.t_final}: the last mask would fall on the first of {counted(steps, 'step')}, "
                "before any importance is known"
            )

    def start(self, trainer: Trainer, kept: Kept) -> None:
        """Takes up the pattern of a run that goes on; at a run's start, for which it is empty, all is kept."""
        whole = {path: [True] * len(scores) for path, scores in trainer.scores().items()}
        self.kept = kept or whole

    def observes(self, t: int) -> bool:
        """Whether the step t counts in the averages of importance."""
        return self.prunes and t < self.last

    def decides(self, t: int) -> bool:
        """Whether a mask is made after the step t."""
        between = self.method.t_init < t < self.last and t % self.method.delta_t == 0
        return self.prunes and (between or t == self.last)

    def settled(self, t: int) -> bool:
        """Whether the ranks of the step t are within the final budget, and stay so."""
        return not self.prunes or t >= self.last

    def share(self, t: int) -> float:
        """Of the triplets that are dropped in the end, how many are still there after the step t: from 1 down to 0."""
        start = self.method.t_init
        return float(np.clip(1 - (t - start) / (self.last - start), 0, 1) ** 3)

    def budget(self, t: int, adapters: int) -> int:
        """Triplets that may be left after the step t, over so many adapters."""
        first, final = self.method.init_rank * adapters, self.method.target_rank * adapters
        return int((first - final) * self.share(t) + final)

    def decide(self, scores: Tensors, t: int) -> Kept:
        """The triplets that are kept by their scores, ``(init_rank,)`` for each adapter."""
        every = np.concatenate(list(scores.values()))
        dropped = len(every) - self.budget(t, len(scores))
        if dropped < 1:
            return {path: [True] * len(values) for path, values in scores.items()}
        threshold = np.partition(every, dropped - 1)[dropped - 1]
        return {path: (~(values <= threshold)).tolist() for path, values in scores.items()}

    def after(self, trainer: Trainer, t: int) -> Kept:
        """Decides and masks what is to be after the step t, and returns what is kept. A decision waits for the step."""
        if self.decides(t):
            self.kept = self.decide(trainer.scores(), t)
        if self.decides(t) or (self.prunes and t > self.last):
            trainer.mask(self.kept)
        return self.kept


ALLOCATORS: Mapping[type[MethodConfig], Callable[[Any, int], RankAllocator]] = {AdaLoRA: RankAllocator}
"""By a method's configuration, what makes its allocator, from that and from the number of the run's steps."""


def check_longer(method: MethodConfig, epochs: int, wanted: int) -> None:
    """Raises UserError where a run deals out ranks over its epochs, and is to have others than it was begun with."""
    if wanted != epochs and type(method) in ALLOCATORS:
        raise UserError(
            f"train.epochs: {method.name} deals out its ranks over the {epochs} epochs that the run was begun with, so "
            f"it cannot have {wanted}: begin another run, with method.from"
        )


def allocator(method: MethodConfig, steps: int) -> RankAllocator | None:
    """What deals out the method's ranks in a run of so many steps; None where they stay as they are.

    Raises:
        UserError: where the method's schedule does not fit into the run.
    """
    make = ALLOCATORS.get(type(method))
    return None if make is None else make(method, steps)
