"""The smallest change of an experiment that needs no more than there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any, NamedTuple

from mlx_peft.config.quantization import Quantization
from mlx_peft.config.schema import Experiment
from mlx_peft.core.errors import UserError


class Change(NamedTuple):
    """What is written for a change, and the experiment with it."""

    overrides: tuple[str, ...]
    experiment: Experiment


def smaller(
    experiment: Experiment, limit: int, needs: Callable[[Experiment], int], processes: int = 1
) -> Change | None:
    """The smallest change that would need no more than the limit; None: there is none of these.

    In this order: a batch in more parts, and gradient checkpointing, which change the time alone; bfloat16; a base in 8
    and in 4 bits. Of several it is the one with the fewest keys, in as few parts as do.

    Args:
        experiment: that needs more.
        limit: bytes.
        needs: bytes of an experiment; raises UserError where it can be none.
        processes: that share each part of a batch evenly.
    """
    for severe in range(len(CHANGES) + 1):
        for options in _up_to(severe):
            changed = _changed(experiment, options)
            if changed is not None and (found := _in_parts(changed, options, limit, needs, processes)) is not None:
                return found
    return None


def _up_to(severe: int) -> Iterator[tuple[str, ...]]:
    """Sets of changes of which the most severe is the one of a number, the fewest first; 0: none but parts."""
    if not severe:
        yield ()
        return
    *milder, last = list(CHANGES)[:severe]
    for count in range(len(milder) + 1):
        for others in combinations(milder, count):
            if len({CHANGES[name][0] for name in (*others, last)}) == len(others) + 1:
                yield (*others, last)


CHANGES: dict[str, tuple[str, Any]] = {
    "train.gradient_checkpointing=true": ("gradient_checkpointing", True),
    "train.precision=bfloat16": ("precision", "bfloat16"),
    "quantize.bits=8": ("quantize", 8),
    "quantize.bits=4": ("quantize", 4),
}
"""Changes of what a step computes, from the mildest to the most severe: the key that each sets, and to what."""


def _changed(experiment: Experiment, options: tuple[str, ...]) -> Experiment | None:
    """The experiment with these changes; None where one of them is none, or cannot be."""
    for key, value in (CHANGES[option] for option in options):
        if key == "quantize":
            if experiment.quantize is not None or experiment.qat is not None:
                return None
            experiment = experiment.model_copy(update={"quantize": Quantization(bits=value)})
        else:
            train = experiment.train.model_copy(update={key: value})
            if train == experiment.train:
                return None
            experiment = experiment.model_copy(update={"train": train})
    return experiment


def _in_parts(
    changed: Experiment, options: tuple[str, ...], limit: int, needs: Callable[[Experiment], int], processes: int
) -> Change | None:
    """The changed experiment in as few parts as it fits in; None where it does not fit in any."""
    batch, own = changed.data.batch_size, changed.train.accumulate
    counts = [parts for parts in range(own, batch + 1) if batch % (parts * processes) == 0]

    def divided(parts: int) -> Experiment:
        return changed.model_copy(update={"train": changed.train.model_copy(update={"accumulate": parts})})

    try:
        # Of parts the gradients are summed beside one another's, so that one part may need less than many.
        if min(needs(divided(count)) for count in (own, counts[-1])) > limit:
            return None
        parts = next(parts for parts in counts if needs(divided(parts)) <= limit)
    except UserError:  # codes of a weight that the method trains, or of groups that do not divide it
        return None
    more = (f"train.accumulate={parts}",) if parts > own else ()
    return Change((*more, *options), divided(parts))
