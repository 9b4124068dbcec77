"""An experiment with its weights and images where they lie now: that is opened, and it stays as it was written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlx_peft.config.schema import Experiment
from mlx_peft.core.errors import UserError
from mlx_peft.training import places
from mlx_peft.training.initial import ranks_in
from mlx_peft.training.run import RunFolder
from mlx_peft.training.whereabouts import find_weights, given


@dataclass(frozen=True)
class Here:
    """What is opened for a run.

    Attributes:
        experiment: with the paths of now.
        found: what the run found before; None where it has not begun, or does not say so.
        begun: whether there is a checkpoint to go on from.
        ranks: of the layers in that checkpoint, where the run dealt them out before its first step.
        beside: the folder of the file that the experiment was read from, where its paths were looked for too.
    """

    experiment: Experiment
    found: places.Found | None = None
    begun: bool = False
    ranks: Mapping[str, int] = field(default_factory=dict)
    beside: Path | None = None

    @property
    def base_sha256(self) -> str | None:
        """What the weights must be; None where that is not known."""
        return None if self.found is None else self.found.base_sha256

    @property
    def start(self) -> places.Start | None:
        """The adapter that the run began with."""
        return None if self.found is None else self.found.start


def located(
    experiment: Experiment,
    folder: RunFolder,
    *,
    resume: bool = False,
    weights: str | None = None,
    beside: Path | None = None,
) -> Here:
    """Finds what an experiment names.

    Args:
        folder: of the run.
        resume: whether it is one that goes on there.
        weights: where a user says that its weights are.
        beside: the folder of the file that the experiment was read from.

    Raises:
        UserError: where the weights of a run that goes on are nowhere.
    """
    if resume and folder.config.exists():
        return _again(experiment, folder, weights)
    if weights is not None:
        raise UserError(
            "a run that has not begun names its weights in its configuration: write model.weights=FILE",
            arguments=("resume",),
        )
    data = experiment.data.model_copy(update={"root": places.beside(experiment.data.root, beside)})
    model = experiment.model
    if model.is_local:
        path = places.beside(Path(os.path.expanduser(model.weights)), beside)
        model = model.model_copy(update={"weights": str(path)}) if path != Path(model.weights) else model
    here = experiment.model_copy(update={"model": model, "data": data})
    return Here(
        _started(here, None if (start := here.method.start) is None else places.beside(start, beside)), beside=beside
    )


def _again(experiment: Experiment, folder: RunFolder, weights: str | None) -> Here:
    before, found = folder.read_config(), places.read_found(folder)
    data = experiment.data
    if data.root == before.data.root:  # else the user says where they are
        data = places.data_here(data, folder, found)
    if weights is not None:
        model = given(experiment.model, weights)
    else:
        there = places.candidates(experiment.model.weights, folder.path, found, "weights")
        model = find_weights(experiment.model, None if found is None else found.base_sha256, there, str(folder.path))
    here = experiment.model_copy(update={"model": model, "data": data})
    start = here.method.start
    if start is not None and not os.path.exists(start) and found is not None and found.start is not None:
        start = Path(found.start.adapter)
    ranks = ranks_in(folder) if experiment.method.given == "images" else {}
    return Here(_started(here, start), found, folder.last.exists(), ranks)


def _started(experiment: Experiment, start: Path | None) -> Experiment:
    """With the adapter that it begins with in another place."""
    return experiment.model_copy(update={"method": experiment.method.model_copy(update={"start": start})})
