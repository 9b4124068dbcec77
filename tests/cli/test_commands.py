"""What the commands say, on which stream, and their exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mlx_peft.config.files import load
from mlx_peft.config.schema import Experiment
from mlx_peft.core.errors import UserError
from mlx_peft.tasks.metrics import Evaluation
from mlx_peft.tasks.single_label import SINGLE_LABEL
from mlx_peft.training.progress import EpochEvent, Progress, StepEvent
from mlx_peft.training.run import RunFolder
from mlx_peft.training.stop import Interrupted

RESULT = {
    "run_id": "0123456789ab",
    "method": "lora",
    "model": "vit_tiny_patch16_224",
    "dataset": "digits",
    "backend": "mlx",
    "seed": 0,
    "metrics": {"val": {"top1": 0.975, "loss": 0.1, "count": 180}, "test": {"top1": 0.9722, "loss": 0.1, "count": 360}},
    "parameters": {"adapter": 40512, "head": 970, "trainable": 41482, "total": 490000, "trainable_percent": 8.47},
    "time": {"train_seconds": 21.5, "images_per_second": 590.4},
    "memory": {"peak_bytes": 312_000_000},
}


def fake_train(experiment: Experiment, out: Path, *, resume: bool, progress: Progress, **_: Any) -> dict[str, Any]:
    """Stands for the engine: the command's part alone is under test."""
    progress.start(0, 10, 1)
    for step in (5, 6):
        progress.step(StepEvent(step, 10, 1, 1, 0.5, 1e-3, 590.4, 312_000_000, logged=step == 5))
    progress.evaluating("val")
    progress.epoch(EpochEvent(1, 1, 0.5, {"top1": 0.975, "loss": 0.1, "count": 180}, True, 21.5))
    return RESULT | {"backend": experiment.backend, "out": str(out), "resume": resume}


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_peft.training.train.train", fake_train)


def test_train_says_where_it_runs_how_it_goes_and_what_came_of_it(command: Any, engine: None) -> None:
    done = command("train", "quickstart")
    assert done.exit_code == 0
    assert done.stderr.splitlines() == [
        "lora on digits with mlx, in runs/quickstart/lora-mlx-0",
        "10 steps in 1 epoch",
        "step 5/10  epoch 1/1  loss 0.5000  lr 1.00e-03  590 images/s  312.0 MB",
        "epoch 1/1  loss 0.5000  val top-1 97.50 % (best)  21.5 s",
    ]
    assert done.stdout.splitlines() == [
        "val      top-1 97.50 %, loss 0.1000 on 180 images",
        "test     top-1 97.22 %, loss 0.1000 on 360 images",
        "trained  41,482 of 490,000 parameters (8.47 %; 970 in the head)",
        "time     21.5 s, 590 images/s, peak memory 312.0 MB of arrays",
        "adapter  runs/quickstart/lora-mlx-0/adapter",
    ]


def test_train_json_is_one_document(command: Any, engine: None) -> None:
    done = command("train", "quickstart", "seed=3", "--json", "method.name=linear", "--out", "here", "--resume")
    result = json.loads(done.stdout)
    assert (result["out"], result["resume"]) == ("here", True)


def test_the_backend_is_the_programs_unless_the_file_or_an_option_says_otherwise(command: Any, engine: None) -> None:
    def backend(*arguments: str, obj: str) -> str:
        return str(json.loads(command("train", *arguments, "--json", obj=obj).stdout)["backend"])

    Path("mine.yaml").write_text(command("cat", "quickstart").stdout + "backend: torch\n")
    assert backend("quickstart", obj="mlx") == "mlx"
    assert backend("quickstart", obj="torch") == "torch"
    assert backend("mine.yaml", obj="mlx") == "torch"
    assert backend("mine.yaml", "backend=mlx", obj="torch") == "mlx"
    assert backend("mine.yaml", "backend=torch", "--backend", "mlx", obj="torch") == "mlx"


def test_an_interrupt_says_how_to_go_on(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(experiment: Experiment, out: Path, **options: Any) -> None:
        raise Interrupted(RunFolder(out), 3, 10)

    monkeypatch.setattr("mlx_peft.training.train.train", interrupted)
    done = command("train", "quickstart", "--json")
    assert done.exit_code == 130
    assert done.stdout == ""
    assert "mlx-peft train runs/quickstart/lora-mlx-0 --resume" in done.stderr


def test_an_interrupt_elsewhere_ends_with_130(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mlx_peft.training.train.train", interrupted)
    done = command("train", "quickstart")
    assert done.exit_code == 130
    assert done.stderr.endswith("interrupted\n")


def test_a_fault_of_the_program_is_not_dressed_up(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("mlx_peft.training.train.train", broken)
    assert isinstance(command("train", "quickstart").exception, ZeroDivisionError)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "quikstart"], "error: there is no recipe 'quikstart'; did you mean 'quickstart'"),
        (["train", "none.yaml"], "error: none.yaml: no such file"),
        (["train", "quickstart", "method.rnk=3"], "method.rnk: unknown key; did you mean 'rank'?"),
        (["train", "quickstart", "method.rank=three"], "method.rank: should be a whole number, not 'three'"),
        (["train", "quickstart", "method.targets=[qvk]"], "method.targets[0]: unknown 'qvk'; did you mean 'qkv'?"),
        (["train", "quickstart", "model.name=vit_tinny_patch16_224"], "did you mean 'vit_tiny_patch16_224'"),
        (["train", "quickstart", "data.name=cifar11"], "data.name: unknown data set 'cifar11'; did you mean 'cifar10'"),
        (["train", "quickstart", "rank"], "'rank' is not an override"),
        (["config", "show", "quickstart", "seed=-1"], "seed: should be greater than or equal to 0, not -1"),
        (["config", "validate", "quickstart", "modle=1"], "modle: unknown key; did you mean 'model'?"),
        (["cat", "quikstart"], "no recipe 'quikstart'"),
        (["ls", "recipes", "quikstart"], "no recipes match 'quikstart'; did you mean 'quickstart'"),
        (["report", "nowhere"], "nowhere is not a folder"),
        (["report", "."], "no finished run below ."),
        (["eval", "nowhere"], "nowhere is not a run"),
        (["predict", "nowhere", "a.png"], "nowhere is not a folder"),
        (["merge", "nowhere", "out"], "nowhere is not a folder"),
        (["bench", "--model", "vit_tinny_patch16_224"], "did you mean 'vit_tiny_patch16_224'"),
        (["parity", "--method", "lra"], "no method 'lra' in the parity matrix; did you mean 'lora'"),
    ],
)
def test_a_mistake_is_one_message_and_status_2(command: Any, arguments: list[str], message: str) -> None:
    done = command(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [["tarin"], ["train"], ["train", "quickstart", "--nope"], ["ls", "things"], ["eval", "x", "--split", "y"]],
)
def test_wrong_usage_is_status_2(command: Any, arguments: list[str]) -> None:
    done = command(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "--help" in done.stderr


def test_the_programs_end_as_their_commands_do() -> None:
    done = subprocess.run([sys.executable, "-m", "mlx_peft", "cat", "nothing"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: there is no recipe 'nothing'\n  see: mlx-peft ls recipes\n"


def test_a_broken_pipe_is_no_news() -> None:
    program = subprocess.Popen(
        [sys.executable, "-m", "mlx_peft", "config", "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert program.stdout
    program.stdout.close()
    assert program.stderr
    assert program.stderr.read() == b""
    program.wait()


@pytest.mark.parametrize("kind", ["models", "families", "methods", "datasets", "recipes", "suites"])
def test_ls_json_holds_what_ls_lists(command: Any, kind: str) -> None:
    names = [entry["name"] for entry in json.loads(command("ls", kind, "--json").stdout)]
    assert names
    listed = [line.split()[0] for line in command("ls", kind).stdout.splitlines()]
    assert listed == ["name"] * (kind not in ("recipes", "suites")) + names


def test_ls_takes_a_part_of_a_name_or_a_pattern(command: Any) -> None:
    def names(pattern: str) -> list[str]:
        return [entry["name"] for entry in json.loads(command("ls", "recipes", pattern, "--json").stdout)]

    assert names("CIFAR100") == [f"{m}-lora-cifar100" for m in ("deit-small", "deit-tiny", "vit-base", "vit-small")]
    assert names("quick*t") == ["quickstart"]
    assert names("nothing") == []


def test_what_is_copied_can_be_trained(command: Any, engine: None) -> None:
    assert command("cp", "quickstart").stdout == "quickstart.yaml\n"
    assert command("cp", "quickstart", "mine.yaml").exit_code == 0
    assert Path("mine.yaml").read_text() == command("cat", "quickstart").stdout
    assert command("train", "mine.yaml").exit_code == 0


def test_a_copy_overwrites_nothing(command: Any) -> None:
    Path("quickstart.yaml").write_text("mine")
    done = command("cp", "quickstart")
    assert (done.exit_code, Path("quickstart.yaml").read_text()) == (2, "mine")
    assert "quickstart.yaml is already there" in done.stderr
    assert command("cp", "quickstart", "no/such/folder.yaml").exit_code == 2


def test_what_config_shows_is_the_same_experiment(command: Any) -> None:
    Path("shown.yaml").write_text(command("config", "show", "quickstart", "method.rank=3", "--backend", "torch").stdout)
    shown = load(Path("shown.yaml"))
    assert (shown.method.rank, shown.backend) == (3, "torch")
    assert command("config", "show", "shown.yaml").stdout == Path("shown.yaml").read_text()


def test_the_schema_is_json(command: Any) -> None:
    assert json.loads(command("config", "schema").stdout)["title"] == "Experiment"


def test_an_error_in_a_sub_command_is_met_alike(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise UserError("this is wrong")

    monkeypatch.setattr("mlx_peft.artifacts.examine.examine_splits", refuse)
    done = command("eval", "run")
    assert (done.exit_code, done.stderr) == (2, "error: this is wrong\n")


def test_eval_predict_and_merge_pass_the_programs_backend_on(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    metrics = {"top1": 0.5, "top5": 0.875, "balanced_accuracy": 0.25, "loss": 1.25, "count": 16}

    def examine(run: Path, splits: list[str | None], backend: str, **options: Any) -> Any:
        asked.append((*splits, backend))
        found = Evaluation(metrics, np.eye(2, dtype=int), {"recall": np.array([1, np.nan])}, {})
        name, loaded = splits[0] or "test", SimpleNamespace(classes=("a", "b"), notes=())
        measured = {"splits": {name: SimpleNamespace(sha256="ab")}, "found": {name: found}}
        return SimpleNamespace(images=SimpleNamespace(own=True), loaded=loaded, **measured)

    monkeypatch.setattr("mlx_peft.artifacts.examine.examine_splits", examine)
    done = command("eval", "run", "--split", "val", obj="torch")
    assert done.stdout == "val      top-1 50.00 %, top-5 87.50 %, balanced 25.00 %, loss 1.2500 on 16 images\n"
    document = json.loads(command("eval", "run", "--json", "--backend", "mlx", obj="torch").stdout)
    assert document == {
        "run": "run", "split": "test", "own_images": True, "sha256": "ab", "metrics": metrics, "classes": ["a", "b"],
        "confusion": [[1, 0], [0, 1]], "per_class": {"recall": [1, None]}, "reliability": {},
    }  # fmt: skip
    assert asked[:2] == [("val", "torch"), (None, "mlx")]


def test_predict_prints_the_likeliest_first(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    guesses = [{"class": "cat", "probability": 0.75}, {"class": "dog", "probability": 0.25}]
    loaded = SimpleNamespace(notes=(), task=SINGLE_LABEL, model=None, base=None, recipe=None, classes=())
    results = [{"image": "a.png", "predictions": guesses}, {"image": "long.png", "predictions": guesses}]
    monkeypatch.setattr("mlx_peft.artifacts.load.load_run", lambda *_, **options: loaded)
    monkeypatch.setattr("mlx_peft.artifacts.predict.answers", lambda *_: results)
    assert command("predict", "run", "a.png", "long.png", "--top", 2).stdout.splitlines() == [
        "a.png      75.0 %  cat",
        "           25.0 %  dog",
        "long.png   75.0 %  cat",
        "           25.0 %  dog",
    ]
    assert json.loads(command("predict", "run", "a.png", "--json").stdout) == results
    assert command("predict", "run", "a.png", "--top", 0).exit_code == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.rank=97", "rank 97 is above the width of blocks.0.attn.qkv: its weight is 288 x 96, so at most 96"),
        ("method.blocks=last 5", "method.blocks: 'last 5' is more than the model's 4 blocks"),
        ("method.blocks=4", "method.blocks: the model has no block 4: it has 4, counted from 0"),
        ("method.rank_pattern={nothing: 4}", "method.rank_pattern: 'nothing' matches no adapted layer"),
        ("method.name=DoRA", "method.name: unknown 'DoRA': it is lora with method.dora=true"),
        ("method.targets=atention", "method.targets[0]: unknown 'atention'; did you mean 'attention'?"),
        ("method.blocks=two", "method.blocks: should be like 'last 4', 'first 6', '8-11', 3 or [0, 5, -1], not 'two'"),
    ],
)
def test_validate_says_what_cannot_be_on_the_model(command: Any, override: str, message: str) -> None:
    done = command("config", "validate", "quickstart", override)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert command("config", "validate", "quickstart", "method.targets=q,v", "method.blocks=-1").exit_code == 0
