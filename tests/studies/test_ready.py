"""What the runs of a suite name is looked for, and compared, before the first of them starts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from mlx_peft.config.schema import Experiment
from mlx_peft.config.study import Planned
from mlx_peft.core.errors import UserError
from mlx_peft.studies import ready
from mlx_peft.training.train import train


def changed(experiment: Experiment, **changes: Any) -> Experiment:
    return Experiment.model_validate(experiment.model_dump() | changes)


def starting(experiment: Experiment, name: str, start: Path) -> Planned:
    return Planned(name, changed(experiment, method=experiment.method.model_dump() | {"from": start}))


def test_an_adapter_that_runs_begin_with_is_checked_before_anything_starts(plan: Any, tmp_path: Path) -> None:
    (good,) = plan(good=1)
    train(good.experiment, tmp_path / "first")
    other = starting(changed(good.experiment, seed=1), "seed", tmp_path / "first")
    planned = [starting(good.experiment, "gone", tmp_path / "gone"), other]
    with pytest.raises(UserError) as caught:
        ready.check([good, *planned], tmp_path / "sweep")
    lines = str(caught.value).splitlines()
    assert lines[1].startswith(f"  gone: method.from: {tmp_path}/gone holds no adapter")
    assert lines[2].startswith(f"  seed: method.from: {tmp_path}/first/adapter was trained on weights")
    assert len(lines) == 3
    fits = starting(good.experiment, "fits", tmp_path / "first")
    (run,) = ready.check([fits], tmp_path / "sweep")
    train(run.experiment, run.folder.path)
    shutil.rmtree(tmp_path / "first")
    assert ready.check([fits], tmp_path / "sweep")[0].folder == run.folder, "it has begun, and has its values"


def test_paths_may_be_relative_to_the_suite(plan: Any, dataset: Any, tmp_path: Path) -> None:
    opened = dataset()
    (tmp_path / "suites" / "photos").mkdir(parents=True)
    (planned,) = plan(a=1)
    train(planned.experiment, tmp_path / "suites" / "first")
    data = planned.experiment.data.model_dump() | {"root": "photos"}
    planned = starting(changed(planned.experiment, data=data), "a", Path("first"))
    (run,) = ready.check([planned], tmp_path / "sweep", beside=tmp_path / "suites")
    assert [config.root for config in opened] == [tmp_path / "suites" / "photos"]
    assert run.beside == tmp_path / "suites"
    trained = train(run.experiment, tmp_path / "run", beside=tmp_path / "suites")
    assert trained["run_id"] == run.run_id
