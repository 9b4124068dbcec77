"""The folder of a run: whose it is, and what may be continued in it."""

from __future__ import annotations

import getpass
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlx_peft.config.files import dump
from mlx_peft.config.schema import Experiment
from mlx_peft.core.errors import UserError
from mlx_peft.training.metrics_file import MetricsFile
from mlx_peft.training.run import RunFolder, environment, read_metrics, run_id

SPLITS = {"train": {"size": 3, "sha256": "ab"}, "val": None, "test": None}


def make(**data: Any) -> Experiment:
    return Experiment.model_validate({
        "model": {"name": "vit_tiny_patch16_224"}, "method": {"name": "lora"}, "data": {"name": "digits"} | data
    })  # fmt: skip


def started(path: Path, experiment: Experiment) -> RunFolder:
    path.mkdir()
    folder = RunFolder(path)
    folder.config.write_text(dump(experiment))
    return folder


@pytest.mark.parametrize("resume", [False, True])
def test_a_new_or_an_empty_folder_is_taken(tmp_path: Path, resume: bool) -> None:
    (tmp_path / ".DS_Store").touch()
    RunFolder(tmp_path).check(make(), resume=resume)
    RunFolder(tmp_path / "new" / "run").check(make(), resume=resume)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_something_else_is_refused(tmp_path: Path, resume: bool) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="not empty and holds no run: choose another folder"):
        RunFolder(tmp_path).check(make(), resume=resume)
    with pytest.raises(UserError, match="is a file"):
        RunFolder(tmp_path / "thesis.tex").check(make(), resume=resume)
    with (
        pytest.raises(UserError, match="cannot be written: Not a directory"),
        RunFolder(tmp_path / "thesis.tex" / "run").locked(),
    ):
        pass


@pytest.mark.parametrize("done", [False, True])
def test_a_folder_that_holds_a_run_is_refused_unless_it_is_to_be_resumed(tmp_path: Path, done: bool) -> None:
    folder = started(tmp_path / "run", make())
    if done:
        folder.result.write_text("{}")
    what = "a finished run: choose another folder" if done else "an unfinished run: continue it"
    with pytest.raises(UserError, match=f"already holds {what}"):
        folder.check(make(), resume=False)
    folder.check(make(), resume=True)


def test_a_run_is_not_continued_with_another_configuration_and_every_difference_is_named(tmp_path: Path) -> None:
    old = make(batch_size=32)
    new = old.model_copy(
        update={
            "train": old.train.model_copy(update={"epochs": 20}),
            "method": old.method.model_copy(update={"rank": 4}),
        }
    )
    folder = started(tmp_path / "run", old)
    with pytest.raises(UserError) as caught:
        folder.check(new, resume=True)
    assert "  train.epochs: 10 there, 20 now" in str(caught.value)
    assert "  method.rank: 8 there, 4 now" in str(caught.value)
    assert "batch_size" not in str(caught.value)


def test_another_kind_of_section_is_a_difference_in_each_of_its_keys(tmp_path: Path) -> None:
    folder = started(tmp_path / "run", make())
    other = Experiment.model_validate(make().model_dump() | {"method": {"name": "linear"}})
    with pytest.raises(UserError, match=r"method\.name: lora there, linear now"):
        folder.check(other, resume=True)


def test_what_decides_nothing_may_differ_on_a_resume(tmp_path: Path) -> None:
    folder = started(tmp_path / "run", make(root="here", threads=1))
    folder.check(make(root="there", threads=4), resume=True)


def test_the_id_depends_on_what_decides_the_outcome_and_on_nothing_else() -> None:
    assert run_id(make(root="here"), SPLITS) == run_id(make(root="there"), SPLITS)
    others = {run_id(make(batch_size=8), SPLITS), run_id(make(), SPLITS | {"val": {"size": 1, "sha256": "c"}})}
    assert len(others | {run_id(make(), SPLITS)}) == 3


def test_two_processes_cannot_use_one_folder_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mlx_peft.training.run import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).locked(): print('locked', flush=True); sys.stdin.read()"
    )
    path = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match="in use by another process"), RunFolder(path).locked():
            pass
        other.kill()
        other.wait()
    with RunFolder(path).locked():
        pass


def test_the_environment_names_versions_but_neither_person_nor_machine() -> None:
    facts = environment("fake 1.0")
    assert facts["framework"] == "fake 1.0"
    assert facts["python"] == platform.python_version()
    assert "numpy" in facts
    private = {platform.node(), getpass.getuser(), str(Path.home()), os.getcwd()}
    assert not [value for value in facts.values() if value in private or str(Path.home()) in value]


def test_metrics_after_the_checkpoint_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, 0)
    file.write({"step": 1, "loss": 0.5})
    length, digest = file.sync()
    file.write({"step": 2, "loss": 0.4})
    file.close()
    path.write_bytes(path.read_bytes() + b'{"step": 3, "lo')
    file = MetricsFile(path, length)
    assert file.sync() == (length, digest)
    assert length == path.stat().st_size
    file.write({"step": 2, "loss": 0.3})
    file.close()
    assert read_metrics(path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.3}]


def test_metrics_shorter_than_the_checkpoint_says_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="shorter than the checkpoint says"):
        MetricsFile(tmp_path / "metrics.jsonl", 10)


@pytest.mark.parametrize(
    "line", ["3", "[]", '"x"', '{"loss": "x"}', '{"loss": NaN}', '{"loss": 1e300}', '{"loss": []}', "[" * 5000]
)
def test_records_are_of_numbers(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1, "loss": 0.5}}\n{line}\n')
    with pytest.raises(UserError, match=r"line 2 is no record of numbers|cannot be read"):
        read_metrics(path)
