"""How a study chooses, on the validation split alone: a rule, and where a search is asked for, what to try next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mlx_peft.config.tuning import Range, Tuning
from mlx_peft.core.errors import UserError
from mlx_peft.tasks.task import Task

Direction = Literal["max", "min"]

TIES = "the lower val.loss, then the first in the file"
DIGITS = 3
"""A number that a search proposes is rounded to so many digits: it stands in the name of a folder."""


@dataclass(frozen=True)
class Score:
    """How good a candidate is: the means over its trials of the metric that is asked for, and of the loss."""

    metric: float
    loss: float


def metric_of(tuning: Tuning, task: Task, metrics: Mapping[str, float]) -> str:
    """The metric that decides."""
    return tuning.metric or task.leading(metrics)


def direction_of(tuning: Tuning, metric: str | None) -> Direction:
    """Which way it is better."""
    return tuning.direction or ("min" if (metric or tuning.metric) == "loss" else "max")


def scored(tuning: Tuning, task: Task, trials: Sequence[Mapping[str, Any]]) -> Score:
    """The score of a candidate, of the results of its trials. Raises UserError where one does not have the metric."""
    found = []
    for result in trials:
        metrics = result["metrics"]["val"]
        metric = metric_of(tuning, task, metrics)
        if metric not in metrics:
            raise UserError(f"there is no val.{metric}; there is {', '.join(metrics)}")
        found.append((metrics[metric], metrics["loss"]))
    metric_mean, loss_mean = np.mean(np.array(found, np.float64), axis=0).tolist()
    return Score(metric_mean, loss_mean)


def best(scores: Sequence[Score | None], direction: Direction) -> int | None:
    """The place of the one that is chosen: of those that are equally good the one with the lower loss, then the first.

    None where none has a score.
    """
    sign = 1 if direction == "min" else -1
    places = [place for place, score in enumerate(scores) if score is not None]
    return min(places, key=lambda place: _order(scores[place], sign), default=None)


def _order(score: Score | None, sign: int) -> tuple[float, float]:
    assert score is not None
    return sign * score.metric, score.loss


def check_search(tuning: Tuning) -> None:
    """Raises UserError where a search is asked for, and what searches is not installed."""
    if tuning.search:
        _optuna()


def proposed(
    tuning: Tuning, tried: Sequence[tuple[Mapping[str, Any], float | None]], number: int, direction: Direction
) -> dict[str, float]:
    """The values to try as the trial of a number, counted from 0: a pure function of what the trials before it gave.

    So it does not matter in which process it is asked, nor after which interruption. Optuna's tree-structured Parzen
    estimator (Bergstra et al. 2011) draws it.

    Args:
        tried: values, and their metric; None where it could not be had.
    """
    optuna = _optuna()
    ranges = {key: optuna.distributions.FloatDistribution(r.low, r.high, log=r.log) for key, r in tuning.search.items()}
    seed = int(np.random.SeedSequence([tuning.search_seed, number]).generate_state(1)[0])
    study = optuna.create_study(
        direction={"max": "maximize", "min": "minimize"}[direction], sampler=optuna.samplers.TPESampler(seed=seed)
    )
    for values, metric in tried[: number - number % tuning.at_once]:
        state = optuna.trial.TrialState.FAIL if metric is None else optuna.trial.TrialState.COMPLETE
        study.add_trial(optuna.trial.create_trial(params=dict(values), distributions=ranges, value=metric, state=state))
    drawn = study.ask(ranges).params
    return {key: rounded(drawn[key], one) for key, one in tuning.search.items()}


def rounded(value: float, within: Range) -> float:
    """The value to so many digits as a name has room for, within its range."""
    return min(max(float(f"{value:.{DIGITS}g}"), within.low), within.high)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UserError(
            "tune.search is Optuna's, which is not installed; install it with: pip install 'mlx-peft[search]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
