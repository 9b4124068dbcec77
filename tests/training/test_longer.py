"""A run takes a folder: again, for more epochs, or in the place of another run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from convert.adapters.peft import read_adapter
from mlx_peft.artifacts.examine import evaluate_run
from mlx_peft.config.files import dump, load
from mlx_peft.config.schema import Experiment
from mlx_peft.core.errors import UserError
from mlx_peft.report.gather import gathered
from mlx_peft.training import prepare, taken
from mlx_peft.training.progress import Silent, StepEvent
from mlx_peft.training.run import RunFolder, read_metrics
from mlx_peft.training.schedule import learning_rate
from mlx_peft.training.train import train


def longer(experiment: Experiment, epochs: int, **options: Any) -> Experiment:
    return experiment.model_copy(update={"train": experiment.train.model_copy(update={"epochs": epochs, **options})})


def losses(folder: Path) -> list[dict[str, float]]:
    timings = ("images_per_second", "seconds")
    return [{k: v for k, v in line.items() if k not in timings} for line in read_metrics(folder / "metrics.jsonl")]


def test_under_a_constant_rate_a_longer_run_ends_as_one_in_one_piece(engine: SimpleNamespace, tmp_path: Path) -> None:
    short = engine.experiment(schedule={"name": "constant"})
    expected = train(longer(short, 5), tmp_path / "whole")
    first = train(short, engine.out)
    found = train(longer(short, 5), engine.out, resume=True)
    assert (found["metrics"], found["selected"]) == (expected["metrics"], expected["selected"])
    assert losses(engine.out) == losses(tmp_path / "whole")
    adapters = [
        (folder / "adapter" / "adapter_model.safetensors").read_bytes() for folder in (engine.out, tmp_path / "whole")
    ]
    assert adapters[0] == adapters[1]
    assert found["changes"] == [{"step": 18, "key": "train.epochs", "before": 3, "now": 5}]
    assert len({found["run_id"], expected["run_id"], first["run_id"]}) == 3


def test_each_further_step_has_the_rate_of_a_run_of_so_many_epochs(engine: SimpleNamespace) -> None:
    short = engine.experiment(log_every=1)
    train(short, engine.out)
    train(longer(short, 6), engine.out, resume=True)
    rates = {int(line["step"]): line["lr"] for line in read_metrics(engine.out / "metrics.jsonl") if "lr" in line}
    for step, rate in rates.items():
        steps = 18 if step <= 18 else 36
        assert rate == learning_rate(step - 1, steps, short.train.optimizer.lr, short.train.schedule)
    assert rates[19] > rates[18], "the cosine that was at its end goes up again"


def test_what_a_run_was_is_kept_whole_beside_it(engine: SimpleNamespace, tmp_path: Path) -> None:
    short = engine.experiment()
    before = train(short, engine.out)
    adapter = read_adapter(engine.out / "adapter").tensors
    train(longer(short, 5), engine.out, resume=True)
    kept = RunFolder(engine.out / "epochs-3")
    assert kept.read_result() == before and kept.read_config() == short
    for name, tensor in read_adapter(kept.adapter).tensors.items():
        np.testing.assert_array_equal(tensor, adapter[name])
    assert evaluate_run(kept.path) == before["metrics"]["test"]
    assert {run.name for run in gathered(engine.out.parent).finished} == {"run/epochs-3", "run"}
    train(longer(short, 6), engine.out, resume=True)
    assert {path.name for path in engine.out.glob("epochs-*")} == {"epochs-3", "epochs-5"}


def test_a_longer_run_that_is_stopped_goes_on(engine: SimpleNamespace, tmp_path: Path) -> None:
    class Stop(Silent):
        def step(self, event: StepEvent) -> None:
            if event.step == 21:
                raise RuntimeError("stop here")

    short = engine.experiment()
    for folder in (engine.out, tmp_path / "other"):
        train(short, folder)
    expected = train(longer(short, 5), tmp_path / "other", resume=True)
    with pytest.raises(RuntimeError):
        train(longer(short, 5), engine.out, resume=True, progress=Stop())
    assert not RunFolder(engine.out).result.exists()
    found = train(load(engine.out / "config.yaml"), engine.out, resume=True)
    assert (found["run_id"], found["metrics"]) == (expected["run_id"], expected["metrics"])


def test_nothing_is_lost_where_a_longer_run_cannot_begin(
    engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(engine.experiment(), engine.out)
    before = contents(engine.out)

    def refuse(*_: object, **__: object) -> None:
        raise UserError("no such thing")

    monkeypatch.setattr(prepare, "load_base", refuse)
    with pytest.raises(UserError, match="no such thing"):
        train(longer(engine.experiment(), 5), engine.out, resume=True)
    assert contents(engine.out) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 2}, r"train\.epochs: 3 there, 2 now"),
        ({"label_smoothing": 0.1, "epochs": 5}, r"train\.label_smoothing: 0\.0 there, 0\.1 now"),
        ({"clip_norm": 1.0}, r"train\.clip_norm: None there, 1\.0 now"),
    ],
)
def test_what_cannot_change_is_refused_by_name(engine: SimpleNamespace, change: dict[str, Any], message: str) -> None:
    train(engine.experiment(), engine.out)
    with pytest.raises(UserError, match=message):
        train(longer(engine.experiment(), **{"epochs": 3} | change), engine.out, resume=True)


def test_a_run_that_stopped_early_waits_longer(engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_peft.training.fit.measured", lambda *_: {"top1": 0.5, "loss": 1.0, "count": 21})
    experiment = engine.experiment(epochs=6, early_stopping=1)
    train(experiment, engine.out)
    assert losses(engine.out)[-1]["epoch"] == 2
    train(longer(experiment, 6, early_stopping=3), engine.out, resume=True)
    assert losses(engine.out)[-1]["epoch"] == 4


def test_a_run_that_would_end_where_it_is_stays_as_it_was(
    engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_peft.training.fit.measured", lambda *_: {"top1": 0.5, "loss": 1.0, "count": 21})
    experiment = engine.experiment(epochs=6, early_stopping=1)
    train(experiment, engine.out)
    before = contents(engine.out)
    early = (
        r"it stopped early, after 1 epoch without improvement, and train\.early_stopping is 1; raise that above 1 too"
    )
    with pytest.raises(UserError, match=early):
        train(longer(experiment, 40), engine.out, resume=True)
    other = engine.out.with_name("other")
    train(engine.experiment(), other)
    with pytest.raises(UserError, match=r"it has had all of its 3 epochs; raise train\.epochs$"):
        train(longer(engine.experiment(), 3, early_stopping=9), other, resume=True)
    assert contents(engine.out) == before and not list(other.glob("epochs-*"))
    train(longer(experiment, 7, early_stopping=3), engine.out, resume=True)
    assert losses(engine.out)[-1]["epoch"] == 4


def test_ranks_that_were_dealt_out_allow_no_other_length(engine: SimpleNamespace) -> None:
    experiment = engine.experiment()
    adalora = Experiment.model_validate(experiment.model_dump() | {"method": {"name": "adalora", "t_final": 1}})
    folder = RunFolder(engine.out)
    engine.out.mkdir()
    folder.config.write_text(dump(adalora))
    with pytest.raises(UserError, match=r"train\.epochs: adalora deals out its ranks over the 3 epochs"):
        train(longer(adalora, 5), engine.out, resume=True)


# In the place of another run.


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_replaces_another(engine: SimpleNamespace, tmp_path: Path) -> None:
    other = engine.experiment(optimizer={"name": "sgd", "lr": 0.01})
    expected = train(other, tmp_path / "alone")
    train(engine.experiment(), engine.out)
    (engine.out / ".DS_Store").touch()
    train(longer(engine.experiment(), 5), engine.out, resume=True)
    found = train(other, engine.out, overwrite=True)
    assert (found["run_id"], found["metrics"]) == (expected["run_id"], expected["metrics"])
    assert {path.name for path in engine.out.iterdir()} == {path.name for path in (tmp_path / "alone").iterdir()}
    assert not [path for path in engine.out.parent.iterdir() if path.name.endswith(".partial")]


def test_overwriting_nothing_is_a_run_like_any(engine: SimpleNamespace) -> None:
    assert train(engine.experiment(), engine.out, overwrite=True)["status"] == "finished"


@pytest.mark.parametrize("part", ["prepared", "begun"])
def test_nothing_is_lost_where_the_new_run_fails_before_it_starts(
    engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    train(engine.experiment(), engine.out)
    before = contents(engine.out)

    def refuse(*_: object, **__: object) -> None:
        raise UserError("no such thing")

    monkeypatch.setattr(*{"prepared": (prepare, "load_base"), "begun": (taken, "written")}[part], refuse)
    with pytest.raises(UserError, match="no such thing"):
        train(engine.experiment(epochs=1), engine.out, overwrite=True)
    assert contents(engine.out) == before
    assert [path.name for path in engine.out.parent.iterdir()] == ["run"]


def test_only_a_run_is_replaced(engine: SimpleNamespace) -> None:
    train(engine.experiment(), engine.out)
    (engine.out / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"besides a run it holds thesis\.tex"):
        train(engine.experiment(), engine.out, overwrite=True)
    other = engine.out.with_name("other")
    other.mkdir()
    (other / "config.yaml").write_text("listen: 8080\n")
    with pytest.raises(UserError, match=r"config\.yaml there is no run's"):
        train(engine.experiment(), other, overwrite=True)
    (other / "config.yaml").rename(other / "notes.txt")
    with pytest.raises(UserError, match="not empty and holds no run"):
        train(engine.experiment(), other, overwrite=True)


def test_a_run_that_another_process_has_is_not_replaced(engine: SimpleNamespace) -> None:
    train(engine.experiment(), engine.out)
    with RunFolder(engine.out).locked(), pytest.raises(UserError, match="in use by another process"):
        train(engine.experiment(epochs=1), engine.out, overwrite=True)
    assert json.loads((engine.out / "result.json").read_text())["selected"]
