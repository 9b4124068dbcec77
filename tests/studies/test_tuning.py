"""A study chooses on validation images alone, and makes what it chose: no run twice, no test split before its time."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from studies.graphs import Inside, Notes

from mlx_peft.config import suite
from mlx_peft.config.tuning import Tuning
from mlx_peft.core.errors import UserError
from mlx_peft.studies import choosing
from mlx_peft.studies.choosing import Score, best
from mlx_peft.studies.graph import Graph
from mlx_peft.studies.processes import Order, Reply
from mlx_peft.studies.ready import Checker
from mlx_peft.studies.record import Before, read_record
from mlx_peft.studies.sweep import Sweep
from mlx_peft.training import train as train_module
from mlx_peft.training.run import RunFolder
from mlx_peft.training.train import train

STUDY: dict[str, Any] = {
    "base": "base.yaml",
    "seeds": [0, 1],
    "tune": {"axes": {"train.optimizer.lr": [0.01, 0.1, 1.0]}},
    "runs": [{"name": "few"}, {"name": "more", "set": {"train.epochs": 2}}],
}


@pytest.fixture
def study(engine: SimpleNamespace, dataset: Any, tmp_path: Path) -> Callable[..., Graph]:
    """The graph of a suite's file, in ``out`` below the test's folder."""

    def load(values: dict[str, Any], *, retry: bool = False) -> Graph:
        base = engine.experiment(epochs=1).model_dump(mode="json")
        (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(values))
        before = Before.of(read_record(tmp_path / "out"), retry=retry)
        return Graph(suite.load(tmp_path / "study.yaml"), Checker(tmp_path / "out"), before)

    return load


@pytest.fixture
def make(study: Callable[..., Graph], tmp_path: Path) -> Callable[..., tuple[Graph, Inside]]:
    """Makes a study: its graph at the end, and what was ordered."""

    def made(values: dict[str, Any], **options: Any) -> tuple[Graph, Inside]:
        graph, inside = study(values, **options), Inside()
        for _ in Sweep(graph, tmp_path / "out", inside, Notes()).run():
            pass
        return graph, inside

    return made


def names(graph: Graph, kind: str) -> list[str]:
    return [node.name for node in graph.nodes if node.kind == kind]


def result(path: Path) -> Any:
    return json.loads((path / "result.json").read_text())


def test_the_best_on_validation_images_is_made_for_good(make: Any, tmp_path: Path) -> None:
    _, inside = make(STUDY)
    out, record = tmp_path / "out", read_record(tmp_path / "out")
    assert record is not None and {node.status for node in record.nodes} == {"finished"}
    for choice in record.choices:
        assert (choice.metric, choice.direction) == ("val.top1", "max")
        scores = [result(out / one.runs[0])["metrics"]["val"]["top1"] for one in choice.candidates]
        assert [one.score for one in choice.candidates] == scores
        assert choice.chosen == max(range(3), key=lambda place: (scores[place], -choice.candidates[place].loss))
        lr = choice.candidates[choice.chosen].changes["train.optimizer.lr"]
        finals = [node for node in record.nodes if node.kind == "final" and node.label == choice.label]
        assert [(node.name, node.seed) for node in finals] == [
            (f"{choice.label}-lr={lr}-seed={seed}", seed) for seed in (0, 1)
        ]
        for node in finals:
            done = result(out / node.folder)
            assert done["metrics"]["test"]["count"] == 21 and "untested" not in done
            assert done["run_id"] == node.run_id
    # Three trials and one more seed of each; the chosen trial goes on, to be tested.
    assert len(inside.orders) == 2 * (3 + 2)


def test_a_final_run_is_the_same_whether_it_was_a_trial_before_or_not(make: Any, tmp_path: Path) -> None:
    make(STUDY)
    trial = tmp_path / "out" / next(iter(names(make(STUDY)[0], "final")))
    again = train(RunFolder(trial).read_config(), tmp_path / "alone")
    found = result(trial)
    for one in (found, again):
        for key in ("time", "memory", "environment"):
            one.pop(key)
    assert found == again
    for file in ("predictions.npz", "metrics.jsonl", "adapter/adapter_model.safetensors"):
        if file != "metrics.jsonl":  # it has seconds
            assert (trial / file).read_bytes() == (tmp_path / "alone" / file).read_bytes()


def test_no_image_of_the_test_split_is_read_before_all_that_is_chosen_by_is_done(
    make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Trials that are the final runs too, and trials that differ from them, by fewer epochs."""
    read: list[tuple[str, str]] = []
    original = train_module.eval_batches
    monkeypatch.setattr(
        train_module,
        "eval_batches",
        lambda split, *rest: read.append((split.name, current[-1])) or original(split, *rest),
    )
    current: list[str] = []
    submit = Inside.submit

    def watched(self: Inside, order: Order, *rest: Any) -> Future[Reply]:
        current.append(Path(order["out"]).name + ("" if order["test"] else " (trial)"))
        return submit(self, order, *rest)

    monkeypatch.setattr(Inside, "submit", watched)
    for fewer in ({}, {"set": {"train.label_smoothing": 0.1}}):
        values = STUDY | {"tune": STUDY["tune"] | fewer}
        graph, _ = make(values)
        trials = [node.run.folder.path for node in graph.nodes if node.kind == "tune"]
        tested = {node.run.folder.path for node in graph.nodes if node.kind == "final"}
        for path in trials:
            assert ("untested" in result(path)) == (path not in tested)
            assert (result(path)["metrics"]["test"] is None) == (path not in tested)
    assert {split for split, _ in read} == {"test"}
    assert not any(name.endswith("(trial)") for _, name in read)


def test_what_is_finished_is_not_made_again_and_what_was_added_is(make: Any) -> None:
    make(STUDY)
    assert make(STUDY)[1].orders == []
    wider = STUDY | {"tune": {"axes": {"train.optimizer.lr": [0.01, 0.1, 1.0, 0.03]}}}
    graph, inside = make(wider)
    assert [Path(order["out"]).name for order in inside.orders][:2] == ["few-lr=0.03-seed=0", "more-lr=0.03-seed=0"]
    assert all(node.status == "finished" for node in graph.nodes)


def test_the_plan_knows_what_is_yet_to_be_chosen(study: Any, tmp_path: Path) -> None:
    record = study(STUDY).record(tmp_path / "out")
    assert [(node.name, node.run_id) for node in record.nodes if node.label == "few" and node.kind == "final"] == [
        ("few-seed=0", None),
        ("few-seed=1", None),
    ]
    assert [choice.chosen for choice in record.choices] == [None, None]
    assert not (tmp_path / "out").exists()


def test_a_trial_that_fails_is_no_candidate_and_may_be_made_again(
    make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    submit = Inside.submit

    def failing(self: Inside, order: Order, *rest: Any) -> Future[Reply]:
        if "step" not in order and order["experiment"]["train"]["optimizer"]["lr"] in broken:
            future: Future[Reply] = Future()
            future.set_result(Reply(2, '{"error": "the loss is nan"}'))
            return future
        return submit(self, order, *rest)

    monkeypatch.setattr(Inside, "submit", failing)
    one = STUDY | {"runs": [{"name": "few"}], "seeds": [0]}
    broken = {0.01, 0.1, 1.0}
    graph, _ = make(one)
    assert {node.status for node in graph.nodes} == {"failed"}
    assert graph.choices[0].chosen is None
    assert graph.nodes[-1].error == "nothing could be chosen: few-lr=0.01 failed: the loss is nan"
    broken = {1.0}
    assert {node.status for node in make(one)[0].nodes} == {"failed"}, "only on request"
    graph, _ = make(one, retry=True)
    (choice,) = graph.choices
    assert choice.candidates[2].error == "few-lr=1.0 failed: the loss is nan" and choice.candidates[2].score is None
    assert choice.chosen in (0, 1)
    assert next(node.status for node in graph.nodes if node.kind != "tune") == "finished"


def test_the_means_over_trial_seeds_are_compared_and_another_metric_may_decide(make: Any, tmp_path: Path) -> None:
    tuning = {"axes": {"train.optimizer.lr": [0.01, 0.1]}, "seeds": [0, 1, 2], "metric": "loss"}
    graph, _ = make({"base": "base.yaml", "tune": tuning})
    (choice,) = graph.choices
    assert (choice.metric, choice.direction) == ("val.loss", "min")
    for one in choice.candidates:
        losses = [result(tmp_path / "out" / name)["metrics"]["val"]["loss"] for name in one.runs]
        assert len(losses) == 3 and one.score == pytest.approx(sum(losses) / 3, rel=1e-12)
    assert choice.chosen == min((0, 1), key=lambda place: choice.candidates[place].score)


def test_a_metric_that_is_not_there_chooses_nothing(make: Any) -> None:
    graph, _ = make({"base": "base.yaml", "tune": {"axes": {"train.epochs": [1, 2]}, "metric": "f2"}})
    assert graph.nodes[-1].error is not None
    assert graph.nodes[-1].error.startswith("nothing could be chosen: there is no val.f2; there is ")


def test_without_validation_images_nothing_can_be_chosen(study: Any, dataset: Any) -> None:
    dataset(val=False)
    with pytest.raises(UserError, match=r"tune chooses on the validation split, and colours has none: set data\.split"):
        study(STUDY)


@pytest.mark.parametrize(
    ("scores", "direction", "chosen"),
    [
        ([(0.5, 1.0), (0.6, 2.0)], "max", 1),
        ([(0.5, 1.0), (0.6, 2.0)], "min", 0),
        ([(0.5, 1.0), (0.5, 0.9), (0.5, 0.9)], "max", 1),
        ([(0.5, 1.0), (0.5, 1.0)], "min", 0),
        ([None, (0.1, 1.0)], "max", 1),
        ([None, None], "max", None),
    ],
)
def test_of_equals_the_lower_loss_counts_and_then_the_first(
    scores: list[tuple[float, float] | None], direction: Any, chosen: int | None
) -> None:
    assert best([None if one is None else Score(*one) for one in scores], direction) == chosen


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({"axes": {"seed": [1]}, "search": {"seed": {"low": 0, "high": 1}}, "trials": 2}, "choose one"),
        ({"search": {"train.optimizer.lr": {"low": 0.1, "high": 1.0}}}, "search needs trials"),
        ({"axes": {"seed": [1]}, "trials": 2}, "search needs trials"),
        ({"search": {"train.optimizer.lr": {"low": 0.0, "high": 1.0, "log": True}}, "trials": 2}, "is no range that"),
        ({"search": {"train.optimizer.lr": {"low": 2.0, "high": 1.0}}, "trials": 2}, "from 2 to 1 is no range"),
        ({"axes": {"train.optimizer.lr": []}}, "should have at least one value"),
        ({"axes": {"train.optimizer.lr": [0.1, 0.1]}}, "two runs have the name"),
        ({"axes": {"train.optimiser": [1]}}, "unknown key"),
    ],
)
def test_what_cannot_be_tuned_is_said_in_words(study: Any, tune: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        study({"base": "base.yaml", "tune": tune})


@pytest.fixture
def searching() -> Tuning:
    return Tuning.model_validate(
        {"search": {"train.optimizer.lr": {"low": 1e-3, "high": 1.0, "log": True}}, "trials": 4, "at_once": 2}
    )


def test_what_a_search_proposes_follows_from_what_was_tried(searching: Tuning) -> None:
    first = choosing.proposed(searching, [], 0, "max")
    second = choosing.proposed(searching, [], 1, "max")
    assert first != second and all(1e-3 <= one["train.optimizer.lr"] <= 1.0 for one in (first, second))
    assert choosing.proposed(searching, [(first, 0.5)], 1, "max") == second, "two know nothing of each other"
    tried = [(first, 0.5), (second, None)]
    assert choosing.proposed(searching, tried, 2, "max") == choosing.proposed(searching, tried, 2, "max")


def test_a_search_ends_in_the_best_of_its_trials_and_goes_on_where_it_was(make: Any, searching: Tuning) -> None:
    values = {"base": "base.yaml", "tune": searching.model_dump(mode="json", exclude_defaults=True)}
    graph, inside = make(values)
    (choice,) = graph.choices
    assert len(choice.candidates) == 4 and choice.chosen is not None
    assert len(inside.orders) == 5
    assert make(values)[1].orders == []
