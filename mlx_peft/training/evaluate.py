"""How good a model is on a split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

import numpy as np

from mlx_peft.core.border import Tensors
from mlx_peft.core.world import World, shared
from mlx_peft.data import Batch
from mlx_peft.protocols.model import Answering, Model
from mlx_peft.tasks.logits import finite
from mlx_peft.tasks.metrics import SHOWN, Answers, Evaluation, Metrics
from mlx_peft.tasks.task import Task


def evaluate(model: Model, batches: Iterable[Batch], task: Task, num_classes: int) -> Metrics:
    """The metrics of a model's answers: see ``measured``."""
    return measured(answers(model, batches), task, num_classes)


Seen = Callable[[np.ndarray, np.ndarray], object]
"""Is told of each batch which of the split's images it has, int64 ``(n,)``, and their logits, ``(n, classes)``."""


def unseen(rows: np.ndarray, logits: np.ndarray) -> None:
    """Nobody is told."""


def answers(model: Answering, batches: Iterable[Batch], seen: Seen = unseen) -> Iterator[Answers]:
    """What a model says of each batch's images. Raises UserError where a logit is not finite.

    Rows that fill a batch up are left out.
    """
    for batch in batches:
        if batch.count:
            logits = finite(model.logits(batch.images)[: batch.count])
            seen(batch.rows, logits)
            yield logits, batch.targets[: batch.count]


def answers_of_all(
    model: Answering,
    batches: Iterable[Batch],
    count: int,
    world: World,
    check: Callable[[], None],
    seen: Seen = unseen,
) -> Iterator[Answers]:
    """What ``answers`` gives of ``count`` batches that several processes share: see ``core.world.shared``."""

    def compute(batch: Batch) -> Tensors | None:
        found = next(answers(model, [batch]), None)
        return None if found is None else {"logits": found[0], "targets": found[1], "rows": batch.rows}

    for found in shared(world, batches, count, compute, check):
        seen(found["rows"], found["logits"])
        yield found["logits"], found["targets"]


def measured(answers: Iterable[Answers], task: Task, num_classes: int) -> Metrics:
    """The metrics of ``examined``; with very many classes without ``auroc``, which then takes as long as a model."""
    return examined(answers, task, num_classes, auroc=num_classes <= SHOWN).metrics


def examined(answers: Iterable[Answers], task: Task, num_classes: int, *, auroc: bool = True) -> Evaluation:
    """What the task makes of answers: see ``Task.examined``. Raises ValueError where there are none."""
    every = iter(answers)
    first = next(every, None)
    if first is None:
        raise ValueError("there are no images to evaluate on")
    return task.examined(chain([first], every), num_classes, auroc)
