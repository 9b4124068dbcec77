"""VTAB-1k's means, and what is refused rather than averaged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mlx_peft.core.errors import UserError
from mlx_peft.data.sets.vtab import TASKS
from mlx_peft.report.boards import board
from mlx_peft.report.gather import FinishedRun as Run
from mlx_peft.report.vtab import by_configuration, lines, means


def run(task: str, score: float, seed: int = 0, method: str = "lora", rank: int = 8, model: str = "vit") -> Run:
    result = {
        "dataset": f"vtab-1k:{task}",
        "method": method,
        "model": model,
        "backend": "torch",
        "seed": seed,
        "parameters": {"adapter": 100 * rank, "head": TASKS[task].classes * 10},
        "metrics": {"test": {"top1": score}},
    }
    configuration = f"{task}-{method}-{rank}-{model}"
    settings = {"method.rank": rank, "data.name": f"vtab-1k:{task}", "seed": seed}
    return Run(f"{configuration}-seed={seed}", result, (), configuration, settings=settings)


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
    runs = [run(task, 0.5, rank=rank) for task in TASKS for rank in (8, 16)] + [run("dtd", 0.1, 0, "ssf")]
    whole, other, part = lines(board([*runs, Run("x", {"dataset": "cifar10", "metrics": {"test": {"top1": 1}}}, ())]))
    assert whole.startswith(
        "VTAB-1k, lora rank=8, vit, torch: natural 50.00, specialized 50.00, structured 50.00; mean of"
    )
    assert other.startswith("VTAB-1k, lora rank=16, vit, torch: ")
    assert "no mean yet: 1 of VTAB-1k's 19 tasks" in part
    assert lines(board([Run("x", {"dataset": "cifar10", "metrics": {"test": {"top1": 1}}}, ())])) == []


def test_one_method_under_two_protocols_has_two_means_over_its_seeds() -> None:
    """As in the suite ``vtab-1k-board``: what tells the runs apart is their augmentation alone."""
    runs = []
    for crop, score in (("none", 0.4), ("random_resized", 0.6)):
        for task in TASKS:
            for seed, off in enumerate((-0.1, 0.1)):
                one = run(task, score + off, seed)
                settings = {**one.settings, "data.augment.crop": crop}
                runs.append(replace(one, name=f"{crop}-{one.name}", configuration=f"{task}-{crop}", settings=settings))
    none, cropped = lines(board(runs))
    assert none.startswith("VTAB-1k, lora crop=none, vit, torch: ") and none.endswith("40.00 (top-1, %, 2 seeds)")
    assert cropped.startswith("VTAB-1k, lora crop=random_resized, ") and "60.00 (top-1" in cropped


def test_another_model_on_some_of_the_tasks_is_not_averaged_with_the_first() -> None:
    runs = [run(task, 0.5, model="vit" if at else "another") for at, task in enumerate(TASKS)]
    assert all("no mean yet" in line for line in lines(board(runs)))


def test_a_run_without_a_test_is_tuning_and_counts_for_nothing() -> None:
    tuning = run("dtd", 0.1)
    tuning.result["metrics"] = {"val": {"top1": 0.1}, "test": None}
    assert by_configuration(board([tuning])) == {}
