"""Several runs: checked before the first, each in a process of its own, none made twice."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from studies.graphs import Notes, folder_of, graph_of, made, starts, sweep_of

from mlx_peft.config.schema import Experiment
from mlx_peft.config.study import Planned
from mlx_peft.core.errors import UserError
from mlx_peft.protocols import loading
from mlx_peft.studies import ready
from mlx_peft.studies.processes import Reply
from mlx_peft.studies.record import read_record
from mlx_peft.studies.sweep import ATTEMPTS
from mlx_peft.training.train import train


def changed(experiment: Experiment, **changes: Any) -> Experiment:
    return Experiment.model_validate(experiment.model_dump() | changes)


def test_an_identity_is_the_one_that_training_gives(
    engine: SimpleNamespace, plan: Any, dataset: Any, tmp_path: Path
) -> None:
    first, second = ready.check(plan(a=1, b=2), tmp_path / "sweep")
    assert first.run_id != second.run_id
    assert train(first.experiment, tmp_path / "run")["run_id"] == first.run_id
    dataset(val=False)
    assert ready.check(plan(a=1), tmp_path / "sweep")[0].run_id != first.run_id


def test_checking_writes_nothing(plan: Any, tmp_path: Path) -> None:
    ready.check(plan(a=1), tmp_path / "sweep")
    assert list(tmp_path.iterdir()) == []


def test_each_data_set_is_opened_once(plan: Any, dataset: Any, tmp_path: Path) -> None:
    opened = dataset()
    planned = plan(a=1, b=2)
    data = planned[0].experiment.data.model_dump()
    planned.append(
        Planned("c", changed(planned[0].experiment, data=data | {"batch_size": 4, "augment": {"flip": True}}))
    )
    planned.append(Planned("d", changed(planned[0].experiment, data=data | {"split": {"seed": 1}})))
    ready.check(planned, tmp_path)
    assert [config.split.seed for config in opened] == [0, 1]


def test_a_finished_run_is_known_by_its_identity_whatever_its_folder(plan: Any, tmp_path: Path) -> None:
    (planned,) = plan(a=1)
    train(planned.experiment, tmp_path / "an-older-name")
    graph = graph_of([planned], tmp_path)
    assert folder_of(graph, "a") == tmp_path / "an-older-name"
    assert made(graph, tmp_path) == {"a": ("finished", None)}
    assert starts(graph) == {"a": 0}


def test_a_folder_with_another_run_is_refused_with_what_differs(plan: Any, tmp_path: Path) -> None:
    first, other = plan(a=1, b=2)
    train(first.experiment, tmp_path / "a")
    before = (tmp_path / "a" / "config.yaml").read_bytes()
    with pytest.raises(UserError) as caught:
        ready.check([Planned("a", other.experiment)], tmp_path)
    assert str(caught.value).splitlines() == [
        "nothing was started:",
        f"  a: the run cannot be continued with another configuration than its own, {tmp_path}/a/config.yaml:",
        "    train.epochs: 1 there, 2 now",
        "  choose another folder, or another name for the run",
    ]
    assert (tmp_path / "a" / "config.yaml").read_bytes() == before


def test_a_finished_run_on_other_images_is_refused(plan: Any, dataset: Any, tmp_path: Path) -> None:
    (planned,) = plan(a=1)
    train(planned.experiment, tmp_path / "a")
    dataset(test=False)
    with pytest.raises(UserError, match=r"(?s)a holds a run on other images: .*\n    test.size: 21 there, None now"):
        ready.check([planned], tmp_path)


def test_a_folder_that_holds_something_else_is_refused(plan: Any, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"a: .*a is not empty and holds no run"):
        ready.check(plan(a=1), tmp_path)


def test_two_runs_that_are_the_same_experiment_are_refused(plan: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\n  b: is the same experiment as a$"):
        ready.check(plan(a=1, b=1), tmp_path)


def test_all_that_is_wrong_is_said_before_anything_starts(plan: Any, dataset: Any, tmp_path: Path) -> None:
    dataset(val=False)
    (good,) = plan(good=1)
    model = good.experiment.model.model_dump()
    planned = [
        good,
        Planned("weights", changed(good.experiment, model=model | {"weights": "nowhere.safetensors"})),
        Planned("method", changed(good.experiment, method={"name": "lora", "rank": 100})),
        Planned("data", plan(data=1)[0].experiment.model_copy(update={"train": stopping(good.experiment)})),
        Planned("again", good.experiment),
    ]
    with pytest.raises(UserError) as caught:
        ready.check(planned, tmp_path)
    message = str(caught.value)
    assert [line.split(":")[0] for line in message.splitlines()] == [
        "nothing was started", "  weights", "    note", "  method", "  data", "  again",
    ]  # fmt: skip
    assert "nowhere.safetensors" in message
    assert "rank 100 is above the width" in message
    assert "train.early_stopping needs a validation split" in message


def stopping(experiment: Experiment) -> Any:
    return experiment.train.model_copy(update={"early_stopping": 1})


def test_a_framework_that_is_missing_is_told_before_anything_starts(
    plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loading.BACKENDS, "mlx", "no_such_module")
    with pytest.raises(UserError, match="every run: the mlx backend cannot be loaded"):
        ready.check(plan(a=1, b=2), tmp_path)


def test_what_is_wrong_with_every_run_is_said_once(plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(data: Any, watch: Any) -> None:
        raise UserError("data.root: no such folder")

    monkeypatch.setattr(ready, "open_dataset", missing)
    with pytest.raises(UserError, match=r"^nothing was started:\n  every run: data.root: no such folder$"):
        ready.check(plan(a=1, b=2), tmp_path)


def test_runs_are_made_in_order_and_each_is_told_its_experiment(plan: Any, tmp_path: Path) -> None:
    graph, notes = graph_of(plan(b=1, a=6), tmp_path / "sweep", tmp_path), Notes()
    assert made(graph, tmp_path / "sweep", notes) == {"b": ("finished", None), "a": ("finished", None)}
    assert (notes.started_runs, notes.most) == (["b", "a"], 1)
    for node in graph.nodes:
        folder = folder_of(graph, node.name)
        assert Experiment.model_validate(json.loads((folder / "order.json").read_text())) == node.planned.experiment
        assert json.loads((folder / "beside.json").read_text()) == str(tmp_path)


def test_so_many_runs_are_made_at_a_time_and_no_more(plan: Any, tmp_path: Path) -> None:
    """The runs of seven epochs wait for each other: one after the other they would never end."""
    planned = [*plan(a=7, c=1), *(Planned(name, changed(one.experiment, seed=1)) for name, one in
                                  (("b", plan(b=7)[0]), ("d", plan(d=1)[0])))]  # fmt: skip
    graph, notes = graph_of([planned[0], planned[2], planned[1], planned[3]], tmp_path), Notes()
    assert {status for status, _ in made(graph, tmp_path, notes, jobs=2).values()} == {"finished"}
    assert (notes.started_runs[:2], notes.most) == (["a", "b"], 2)


EXPECTED = {
    "first": ("finished", None),
    "nan": ("failed", "the loss is nan"),
    "crash": ("failed", "its process ended with status 1; what it said is above"),
    "killed": ("failed", "its process was ended by SIGKILL, perhaps for want of memory"),
    "last": ("finished", None),
}


def test_a_run_that_fails_does_not_end_the_others_and_is_made_again_on_request(plan: Any, tmp_path: Path) -> None:
    planned = plan(first=1, nan=2, crash=3, killed=4, last=6)
    runs = ready.check(planned, tmp_path)
    checker = SimpleNamespace(check=lambda planned: runs)  # what stands for a run leaves too little to be checked again
    for retry, begun in (
        (False, {"first": 1, "nan": 1, "crash": 1, "killed": ATTEMPTS, "last": 1}),
        (False, {"first": 1, "nan": 1, "crash": 1, "killed": ATTEMPTS, "last": 1}),  # what failed stays so, ...
        (True, {"first": 1, "nan": 2, "crash": 2, "killed": 2 * ATTEMPTS, "last": 1}),  # ... unless asked for
    ):
        graph = graph_of(planned, tmp_path, retry=retry, checker=checker)
        assert made(graph, tmp_path) == EXPECTED
        assert starts(graph) == begun
    record = read_record(tmp_path)
    assert record is not None
    assert {node.name: (node.status, node.error) for node in record.nodes} == EXPECTED


def test_a_worker_that_does_not_answer_as_one_has_failed_alone(plan: Any, tmp_path: Path) -> None:
    """It says what is no answer, or leaves a result that cannot be read: the others are made."""
    found = made(graph_of(plan(noisy=8, damaged=9, last=6), tmp_path), tmp_path)
    assert found["noisy"] == ("failed", "its process ended with status 2; what it said is above")
    status, error = found["damaged"]
    assert status == "failed" and error is not None and "delete it, and resuming the run makes it again" in error
    assert found["last"] == ("finished", None)


def test_a_signal_without_a_name_is_told_by_its_number() -> None:
    assert Reply(-40).explained(None) == "its process was ended by signal 40"


def test_a_second_sweep_in_the_same_folder_is_refused(plan: Any, tmp_path: Path) -> None:
    graph = graph_of(plan(a=1, b=6), tmp_path)
    first = sweep_of(graph, tmp_path).run()
    next(first)
    with pytest.raises(UserError, match="is in use by another process"):
        next(sweep_of(graph, tmp_path).run())
    assert [node.name for node in first] == ["b"]


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "int"), (signal.SIGTERM, "term"), (signal.SIGHUP, "hup")])
def test_a_signal_reaches_the_run_once_and_ends_the_sweep(
    plan: Any, tmp_path: Path, number: signal.Signals, name: str
) -> None:
    graph = graph_of(plan(first=1, waits=5, last=6), tmp_path)

    def interrupt() -> None:
        while not (tmp_path / "waits" / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    before = signal.signal(number, signal.SIG_DFL)  # under nohup, SIGHUP is ignored
    thread = threading.Thread(target=interrupt)
    thread.start()
    found = made(graph, tmp_path)
    thread.join()
    assert found == {"first": ("finished", None), "waits": ("interrupted", None), "last": ("waiting", None)}
    assert (tmp_path / "waits" / "signals").read_text() == name
    assert not (tmp_path / "last").exists()
    assert signal.signal(number, before) is signal.SIG_DFL


def test_a_signal_between_two_runs_ends_the_sweep(plan: Any, tmp_path: Path) -> None:
    graph = graph_of(plan(first=1, last=6), tmp_path)
    sweep = sweep_of(graph, tmp_path).run()
    assert next(sweep).name == "first"
    os.kill(os.getpid(), signal.SIGINT)
    assert list(sweep) == []
    assert [node.status for node in graph.nodes] in (["finished", "interrupted"], ["finished", "waiting"])
