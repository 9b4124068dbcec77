"""Which runs stand in which cell of a comparison, and what is said of those that stand in none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_runs import experiment, make

from mlx_peft.report import gather, tables
from mlx_peft.report.boards import board
from mlx_peft.report.gather import FinishedRun
from mlx_peft.report.plan import plans
from mlx_peft.report.study import Study, examined, untested
from mlx_peft.report.verdicts import on_each_set
from mlx_peft.studies.record import NodeRecord, StudyRecord

SETS = ("cifar10", "dtd")


def run(method: str, dataset: str, seed: int, top1: float | None = 0.5, **more: Any) -> FinishedRun:
    result = {"run_id": f"{method} {dataset} {seed}", "seed": seed, "method": method, "dataset": dataset,
              "metrics": {"val": {"top1": 0.4}, "test": None if top1 is None else {"top1": top1}}} | more  # fmt: skip
    settings = {"method.name": method, "data.name": dataset, "train.epochs": 3}
    name = f"{method}-{dataset}-seed={seed}{'-merged' * ('step' in more)}"
    return FinishedRun(name, result, (), f"{method} {dataset}{more.get('step')}", settings=settings)


def node(method: str, dataset: str, seed: int, status: str = "finished", **more: Any) -> NodeRecord:
    values: dict[str, Any] = {
        "name": f"{method}-name={dataset}-seed={seed}", "kind": "final", "label": f"{method}-name={dataset}",
        "method": method, "seed": seed, "changes": {"data.name": dataset}, "run_id": f"{method} {dataset} {seed}",
        "folder": None, "step": None, "of": None, "status": status, "error": None, "seconds": None,
    }  # fmt: skip
    return NodeRecord.model_validate(values | more)


def planned(folder: Path, nodes: list[NodeRecord]) -> Any:
    (folder / "study.json").write_text(json.dumps(StudyRecord(nodes=nodes).model_dump(mode="json")))
    (plan,) = plans(folder)
    return plan.runs


def test_what_failed_stands_in_the_row_of_its_method_whatever_its_set(tmp_path: Path) -> None:
    """One seed of a cell, all of a cell, and a method that has nothing anywhere."""
    runs = [run(method, dataset, seed) for method in ("lora", "ssf") for dataset in SETS for seed in (0, 1)]
    gone = {("lora", "dtd", 1), ("ssf", "dtd", 0), ("ssf", "dtd", 1)}
    nodes = [
        node(method, dataset, seed, "failed" if (method, dataset, seed) in gone else "finished", error="no memory")
        for method in ("lora", "ssf", "vera")
        for dataset in SETS
        for seed in (0, 1)
    ]
    nodes = [one if one.method != "vera" else one.model_copy(update={"status": "failed"}) for one in nodes]
    kept = [one for one in runs if (one.value("method"), one.value("dataset"), one.value("seed")) not in gone]
    found = board(kept, planned(tmp_path, nodes))
    assert found.rows == ("lora", "ssf", "vera")
    assert found.notes["lora", 1] == ("seed 1: failed: no memory",)
    assert found.notes["ssf", 1] == ("failed: no memory",)
    assert set(found.notes) == {("lora", 1), ("ssf", 1), ("vera", 0), ("vera", 1)}


def test_a_run_that_a_study_finished_and_that_is_not_there_is_missed(tmp_path: Path) -> None:
    nodes = [node("lora", "cifar10", seed, label="lora", changes={}) for seed in (0, 1, 2)]
    found = board([run("lora", "cifar10", seed) for seed in (0, 1)], planned(tmp_path, nodes))
    assert found.notes == {("lora", 0): ("seed 2: there is no result",)}


def test_what_is_made_of_a_run_has_a_row_of_its_own(tmp_path: Path) -> None:
    runs, nodes = [], []
    for seed in (0, 1):
        step = {"run_id": f"merged {seed}", "step": {"name": "merged"}}
        runs += [run("lora", "cifar10", seed), run("lora", "cifar10", seed, 0.4, **step)]
        nodes.append(node("lora", "cifar10", seed, label="lora", changes={}))
        nodes.append(
            node("lora", "cifar10", seed, label="lora", changes={}, kind="then", step="merged", run_id=f"merged {seed}")
        )
    assert board(runs, planned(tmp_path, nodes)).rows == ("lora", "lora merged")


def test_a_copy_of_a_run_is_compared_with_nothing() -> None:
    runs = [run("lora", "cifar10", 0), run("ssf", "cifar10", 0)]
    copy, again = replace(runs[0], name="backup/lora"), replace(runs[1], name="ssf once more")
    again.result["time"] = {"train_seconds": 1.0}
    found = untested([*runs, copy, replace(again, result={**again.result, "time": {"train_seconds": 2.0}})])
    assert [one.name for one in found.compared] == ["lora-cifar10-seed=0", "ssf-cifar10-seed=0", "ssf once more"]
    assert found.board.apart == ("not compared, since it is a copy of lora-cifar10-seed=0: backup/lora",)


def test_what_was_not_tested_is_named_beside_what_was() -> None:
    runs = [run("lora", "cifar10", 0), *(run(f"m{at}", "cifar10", 0, None) for at in range(7))]
    found = board(runs)
    assert found.rows == ("lora-cifar10-seed=0",)
    (said,) = found.apart
    assert said.startswith("not compared, for want of a test result: m0-cifar10-seed=0, m1-") and said.endswith(
        " and 2 more"
    )
    assert board(runs[1:]).apart == (), "where nothing was tested, what was validated is compared"


def test_a_seed_without_a_test_does_not_hide_those_that_have_one() -> None:
    found = board([run("lora", "cifar10", 0, None), run("lora", "cifar10", 1, 0.6)])
    ((row, at),) = found.cells
    score = found.score(row, at)
    assert score is not None and (score.mean, score.n) == (0.6, 1)


def test_equal_means_are_equally_good_whatever_the_order_of_a_sum() -> None:
    """0.1 + 0.2 is not 0.3 in a computer: without predictions both are in bold, and with them both are the best."""
    scores = {"a": 0.3, "b": 0.1 + 0.2, "c": 0.29}
    assert scores["a"] != scores["b"]
    found = board([run(method, "cifar10", 0, top1) for method, top1 in scores.items()])
    verdict = on_each_set(found)[0]
    assert verdict.best == {"a-cifar10-seed=0", "b-cifar10-seed=0"}
    assert verdict.leader == "a-cifar10-seed=0"


@pytest.fixture(scope="module")
def shuffled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Study]:
    """Three methods, and the same where one has its images in another order."""
    import numpy as np

    from mlx_peft.training.predictions import Predictions, encoded, read_predictions

    found = []
    for name in ("plain", "shuffled"):
        folder = tmp_path_factory.mktemp(name)
        for method, share in (("lora", 0.8), ("ssf", 0.75), ("linear", 0.5)):
            make(folder / method, experiment({"name": method}, "cifar10", 0), share)
        if name == "shuffled":
            kept = read_predictions(folder / "ssf")
            assert kept is not None
            order = np.random.default_rng(0).permutation(200)
            one = Predictions(
                *(array[order] for array in (kept["test"].identifiers, kept["test"].logits, kept["test"].labels))
            )
            (folder / "ssf" / "SHA256SUMS.txt").unlink()
            (folder / "ssf" / "predictions.npz").write_bytes(encoded({"test": one}))
        found.append(examined(gather.gathered(folder)))
    return found[0], found[1]


def test_images_are_paired_by_their_names_and_not_by_their_order(shuffled: tuple[Study, Study]) -> None:
    plain, other = shuffled
    assert plain.verdicts[0].p and dict(plain.verdicts[0].p) == dict(other.verdicts[0].p)
    assert tables.latex(plain) == tables.latex(other)
