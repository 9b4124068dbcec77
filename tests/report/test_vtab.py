"""VTAB-1k's means, and what is refused rather than averaged."""

from __future__ import annotations

import numpy as np
import pytest

from mlx_peft.core.errors import UserError
from mlx_peft.data.sets.vtab import TASKS
from mlx_peft.report.gather import FinishedRun as Run
from mlx_peft.report.vtab import by_configuration, lines, means


def run(task: str, score: float, seed: int = 0, method: str = "lora", adapter: int = 100, name: str = "") -> Run:
    result = {
        "dataset": f"vtab-1k:{task}",
        "method": method,
        "model": "vit",
        "backend": "torch",
        "seed": seed,
        "parameters": {"adapter": adapter, "head": TASKS[task].classes * 10},
        "metrics": {"test": {"top1": score}},
    }
    return Run(name or f"{task}-{method}-{adapter}-{seed}", result, ())


def test_the_mean_of_the_groups_and_of_the_tasks_weigh_a_task_differently() -> None:
    weights = {"natural": 1 / 21, "specialized": 1 / 12, "structured": 1 / 24}
    scores = dict(zip(TASKS, np.random.default_rng(0).random(19).tolist(), strict=True))
    found = means({task: [score] for task, score in scores.items()})
    expected = sum(weights[TASKS[task].group] * score for task, score in scores.items())
    assert found.of_groups == pytest.approx(expected)
    assert found.of_tasks == pytest.approx(np.mean(list(scores.values())))
    assert found.groups["specialized"] == pytest.approx(
        np.mean([scores[task] for task in ("patch_camelyon", "eurosat", "resisc45", "diabetic_retinopathy")])
    )
    assert found.seeds == 1


def test_seeds_are_averaged_within_a_task_first() -> None:
    scores = {task: [0.5] for task in TASKS} | {"kitti": [0.2, 0.4, 0.9]}
    assert means(scores).of_tasks == pytest.approx(0.5)


def test_a_missing_task_is_named_and_nothing_is_averaged() -> None:
    with pytest.raises(UserError, match=r"17 of VTAB-1k's 19 tasks; missing: caltech101, kitti"):
        means({task: [0.5] for task in TASKS if task not in ("caltech101", "kitti")})


def test_configurations_are_told_apart_and_the_unfinished_said() -> None:
    runs = [run(task, 0.5, adapter=adapter) for task in TASKS for adapter in (100, 200)] + [run("dtd", 0.1, 0, "ssf")]
    whole, other, part = lines([*runs, Run("x", {"dataset": "cifar10"}, ())])
    assert whole.startswith(
        "VTAB-1k, lora, vit, torch, 100: natural 50.00, specialized 50.00, structured 50.00; mean of"
    )
    assert other.startswith("VTAB-1k, lora, vit, torch, 200: ")
    assert "no mean yet: 1 of VTAB-1k's 19 tasks" in part
    assert lines([Run("x", {"dataset": "cifar10", "metrics": {"test": {"top1": 1}}}, ())]) == []


def test_two_runs_of_one_task_and_seed_are_refused() -> None:
    with pytest.raises(UserError, match=r"a and b are of one method, task and seed"):
        by_configuration([run("dtd", 0.1, name="a"), run("dtd", 0.2, name="b")])


def test_a_run_without_a_test_is_tuning_and_counts_for_nothing() -> None:
    tuning = run("dtd", 0.1)
    tuning.result["metrics"] = {"test": None}
    assert by_configuration([tuning]) == {}
