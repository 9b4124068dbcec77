"""The learning rate at each step of a run."""

from __future__ import annotations

import math

from mlx_peft.config.schema import Schedule


def learning_rate(step: int, steps: int, peak: float, schedule: Schedule) -> float:
    """The rate of step number ``step``, counted from 0, of ``steps``.

    Warm-up is a straight line from 0 just before the first step to ``peak`` on the first step after the warm-up; a
    decay goes from there to 0 just after the last step. So no step is spent on a rate of 0, at either end.
    """
    warmup = round(schedule.warmup * steps)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    if schedule.name == "cosine":
        return peak * (1 + math.cos(math.pi * done)) / 2
    if schedule.name == "linear":
        return peak * (1 - done)
    return peak
