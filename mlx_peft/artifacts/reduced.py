"""How good finished runs are with fewer tokens: off the shelf, and trained with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlx_peft.artifacts.examine import examine_splits
from mlx_peft.config.schema import Model
from mlx_peft.config.tokens import NONE
from mlx_peft.config.tokens_text import reducer_of
from mlx_peft.core.errors import UserError
from mlx_peft.data.looking import Watch, unwatched
from mlx_peft.tasks.metrics import Metrics
from mlx_peft.tasks.registry import leading
from mlx_peft.training.run import RunFolder


@dataclass(frozen=True)
class Accuracy:
    """What runs reach under one reducer.

    Attributes:
        reducer: as ``str`` writes it; NONE: the plain model.
        trained: whether they were trained with it; otherwise it was put into runs without one.
        split: of the images that they were measured on.
        metric: the leading one of the runs' task.
        values: a run each.
    """

    reducer: str
    trained: bool
    split: str
    metric: str
    values: tuple[float, ...]


def accuracies(
    runs: Sequence[Path],
    reducers: Sequence[str],
    split: Literal["val", "test"] = "test",
    watch: Watch = unwatched,
) -> list[Accuracy]:
    """The leading metric of each run: of one without a reducer under each of them, of the others under their own.

    What a run was measured with at its end is read, and not measured again.

    Args:
        reducers: see ``config.tokens_text.reducer_of``; NONE among them.

    Raises:
        UserError: a run, its images or such a split of them are not found, or their tasks have different metrics.
    """
    found: dict[tuple[str, bool], list[float]] = {}
    metrics: set[str] = set()
    for run in runs:
        own = RunFolder(run).read_config().tokens
        for reducer in [own] if own is not None else map(reducer_of, reducers):
            values = _recorded(run, split) if reducer == own else None
            if values is None:
                values = examine_splits(run, [split], tokens=reducer, watch=watch).found[split].metrics
            metrics.add(metric := leading(values))
            found.setdefault((str(reducer or NONE), own is not None), []).append(values[metric])
    if len(metrics) > 1:
        raise UserError(f"the runs have different leading metrics: {', '.join(sorted(metrics))}", arguments=("runs",))
    return [Accuracy(*key, split, metric, tuple(values)) for metric in metrics for key, values in found.items()]


def _recorded(run: Path, split: str) -> Metrics | None:
    """A split's metrics in the run's result; None where it has none."""
    result = RunFolder(run).read_result()
    return None if result is None else result["metrics"][split]


def must_be_seeds(runs: Sequence[Path], reducers: Sequence[str], timed: Model) -> None:
    """Raises UserError, before anything is timed, where runs have no place in one table.

    They must be finished, of the model that is timed, and alike but for their seeds and reducers: their mean is told.
    One that was trained with a reducer is told beside its speed.
    """
    known = {str(reducer_of(text) or NONE) for text in reducers}
    for run in runs:
        folder = RunFolder(run)
        if folder.read_result() is None:
            raise UserError(f"{run} is not a finished run", arguments=("runs",))
        config, first = folder.read_config(), RunFolder(runs[0]).read_config()
        if (config.model.name, config.model.image_size) != (timed.name, timed.image_size):
            raise UserError(f"{run} is of another model, or of another size of images, than what is timed")
        if (config.data, config.method) != (first.data, first.method):
            raise UserError(f"{run} and {runs[0]} differ in their images or their method: one mean cannot tell of both")
        if (own := str(config.tokens or NONE)) not in known:
            raise UserError(f"{run} was trained with {own}, which is not timed: name it too", arguments=("reducers",))
