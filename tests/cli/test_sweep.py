"""``sweep``: what it says, writes and ends with; and two runs made in earnest, stopped and gone on with."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hanging import HUNG
from PIL import Image

from mlx_peft.cli import sweep
from mlx_peft.config.suite import load
from mlx_peft.core.border import Device

SUITE = """# Ranks.
base: quickstart
set: {train.epochs: 1}
runs: [{name: linear, set: {method: {name: linear}}}, {name: lora, axes: {method.rank: [2, 4]}}]
"""
WORKER = """
import json, pathlib, sys
order = json.loads(sys.stdin.readline())
out, experiment = pathlib.Path(order["out"]), order["experiment"]
print("training", experiment["backend"], file=sys.stderr)
rank = experiment["method"].get("rank", 0)
if experiment["seed"] == 666 and rank == 2:
    json.dump({"error": "the loss is nan"}, sys.stdout)
    sys.exit(2)
if experiment["seed"] == 130 and rank == 2:
    sys.exit(130)
out.mkdir(parents=True)
(out / "config.yaml").write_text(json.dumps(experiment))
(out / "result.json").write_text(json.dumps({
    "run_id": "none", "method": experiment["method"]["name"], "model": "vit", "dataset": "digits", "backend": "mlx",
    "seed": 0, "metrics": {"val": {"top1": 0.5 + rank / 20}, "test": None}, "splits": SPLITS,
    "parameters": {"adapter": rank, "trainable": rank + 970}, "memory": {"peak_bytes": 15_000_000},
    "time": {"train_seconds": 2.0, "epoch_seconds": 2.0, "images_per_second": 700.0},
}))
"""


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for the training process: the command's part alone is under test."""
    from mlx_peft.config import files, recipes
    from mlx_peft.data import open_dataset
    from mlx_peft.training.prepare import describe_splits

    splits = describe_splits(open_dataset(files.load(recipes.find("quickstart")).data))
    code = WORKER.replace("SPLITS", repr(splits))
    backend = SimpleNamespace(computing=lambda: Device(None, forms_attention=False))
    monkeypatch.setattr("mlx_peft.studies.ready.backend_of", lambda experiment: backend)
    monkeypatch.setattr("mlx_peft.cli.sweep.WORKER", (sys.executable, "-I", "-S", "-c", code))


@pytest.fixture
def suite(command: Any) -> Path:
    file = Path("ranks.yaml")
    file.write_text(SUITE)
    return file


TABLE = """All runs: model vit, data set digits, backend mlx, seed 0, augmentation none, epochs 1, learning rate \
0.003, weight decay 0.01.

| run         | method | val top-1 (%) | trained | without head | seconds | s/epoch | images/s | peak of arrays (MB) |
| ----------- | ------ | ------------: | ------: | -----------: | ------: | ------: | -------: | ------------------: |
| linear      | linear |         50.00 |     970 |            0 |     2.0 |     2.0 |      700 |                  15 |
| lora-rank=2 | lora   |         60.00 |     972 |            2 |     2.0 |     2.0 |      700 |                  15 |
| lora-rank=4 | lora   |         70.00 |     974 |            4 |     2.0 |     2.0 |      700 |                  15 |
"""


def test_the_runs_are_made_and_set_side_by_side(command: Any, suite: Path, worker: None) -> None:
    done = command("sweep", suite)
    assert done.exit_code == 0
    assert done.stdout == TABLE
    assert done.stderr.splitlines() == [
        "3 runs in runs/ranks",
        "[1/3] linear",
        "[2/3] lora-rank=2",
        "[3/3] lora-rank=4",
    ]
    out = Path("runs/ranks")
    assert (out / "table.md").read_text() == TABLE
    assert [row["metrics.val.top1"] for row in csv.DictReader((out / "table.csv").open())] == ["0.5", "0.6", "0.7"]
    runs = json.loads((out / "study.json").read_text())["nodes"]
    assert [(run["name"], run["status"], run["error"]) for run in runs] == [
        ("linear", "finished", None), ("lora-rank=2", "finished", None), ("lora-rank=4", "finished", None)
    ]  # fmt: skip


def test_what_is_finished_is_not_made_again(command: Any, suite: Path, worker: None) -> None:
    command("sweep", suite)
    suite.write_text(SUITE.replace("[2, 4]", "[2, 4, 8]"))
    done = command("sweep", suite)
    assert done.stderr.splitlines() == ["4 runs in runs/ranks, 3 of them finished", "[4/4] lora-rank=8"]
    assert len(done.stdout.splitlines()) == len(TABLE.splitlines()) + 1


def test_json_is_one_document_with_the_results(command: Any, suite: Path, worker: None) -> None:
    runs = json.loads(command("sweep", suite, "--json", "--out", "here").stdout)["runs"]
    assert [run["folder"] for run in runs] == ["here/linear", "here/lora-rank=2", "here/lora-rank=4"]
    assert [run["result"]["parameters"]["adapter"] for run in runs] == [0, 2, 4]


def test_a_run_that_fails_is_named_and_the_others_are_made(command: Any, suite: Path, worker: None) -> None:
    done = command("sweep", suite, "seed=666")
    assert done.exit_code == 1
    assert done.stdout.splitlines()[4:] == [line for line in TABLE.splitlines()[4:] if "rank=2" not in line]
    assert "lora-rank=2 failed: the loss is nan" in done.stderr.splitlines()
    assert done.stderr.endswith("\n1 of 3 runs failed: lora-rank=2; --retry makes them again\n")
    runs = json.loads(Path("runs/ranks/study.json").read_text())["nodes"]
    assert [run["status"] for run in runs] == ["finished", "failed", "finished"]
    assert runs[1]["error"] == "the loss is nan"


def test_an_interrupt_ends_with_130_and_says_how_to_go_on(command: Any, suite: Path, worker: None) -> None:
    done = command("sweep", suite, "seed=130", "--json")
    assert done.exit_code == 130
    assert [run["status"] for run in json.loads(done.stdout)["runs"]] == ["finished", "interrupted", "waiting"]
    assert done.stderr.endswith("\ninterrupted with 1 of 3 runs finished; to go on, give the same command again\n")


def test_the_command_line_reaches_every_run(command: Any, suite: Path, worker: None) -> None:
    command("sweep", suite, "data.batch_size=64", "--backend", "torch", obj="mlx")
    for run in ("linear", "lora-rank=2"):
        experiment = json.loads(Path("runs/ranks", run, "config.yaml").read_text())
        assert (experiment["backend"], experiment["data"]["batch_size"]) == ("torch", 64)


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (SUITE, ["train.epoch=1"], "every run: train.epoch: unknown key; did you mean 'epochs'?  [command line]"),
        (SUITE, ["method.name=linear"], "lora-rank=2, lora-rank=4: is the same experiment as linear"),
        (SUITE, ["data.name=digit"], "every run: data.name: unknown data set 'digit'; did you mean 'digits'"),
        (SUITE.replace("[2, 4]", "[2, 400]"), [], "lora-rank=400: method: rank 400 is above the width"),
        (SUITE.replace("axes", "axis"), [], "runs[1].axis: unknown key; did you mean 'axes'?"),
    ],
)
def test_a_mistake_is_told_before_anything_starts(
    command: Any, suite: Path, text: str, arguments: list[str], message: str
) -> None:
    suite.write_text(text)
    done = command("sweep", suite, *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert list(Path().iterdir()) == [suite]


def test_an_unknown_suite_is_met_with_the_nearest(command: Any) -> None:
    done = command("sweep", "quikstart-methods")
    assert done.exit_code == 2
    assert "no suite 'quikstart-methods'; did you mean 'quickstart-methods'" in done.stderr


def test_a_shipped_suite_can_be_copied_and_run(command: Any, worker: None) -> None:
    assert command("cp", "quickstart-methods", "mine.yaml").exit_code == 0
    assert command("cat", "quickstart-methods").stdout == Path("mine.yaml").read_text()
    assert command("sweep", "mine.yaml").exit_code == 0


def test_the_readme_s_suite_is_what_it_says(command: Any) -> None:
    section = (Path(__file__).parents[2] / "README.md").read_text().partition("## Compare methods")[2]
    file = Path("readme.yaml")
    file.write_text(section.partition("```yaml\n")[2].partition("```")[0])
    names = [run.name for run in load(file).runs]
    assert names[:2] == ["lora-rank=4-seed=0", "lora-rank=4-seed=1"]
    assert names[-1] == "linear-seed=2"
    assert len(names) == (2 + 2 + 1) * 3


STOPPING = (
    f"A_RUN = {list(sweep.WORKER[1:])}"
    + """
import os, signal, sys
if sys.orig_argv[1:3] == A_RUN:
    from mlx_peft.training.metrics_file import MetricsFile

    write, written = MetricsFile.write, []

    def stopping(self, record):
        write(self, record)
        written.append(record)
        if len(written) == 2:
            heard, told = os.pipe()
            os.set_blocking(told, False)
            signal.set_wakeup_fd(told)
            os.kill(os.getppid(), int(os.environ["STOPPED_BY"]))
            os.read(heard, 1)  # what becomes of the sweep reaches its run as a signal

    MetricsFile.write = stopping
"""
)
"""The start of a run that ends its sweep at the second line of its metrics, however fast the machine is."""


@pytest.mark.slow
def test_a_run_in_earnest_is_stopped_in_the_middle_again_and_again_and_gone_on_with(tmp_path: Path) -> None:
    """Killed with its sweep, then interrupted."""
    for number in range(32):
        image = tmp_path / "images" / f"class {number % 2}" / f"{number}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number * 8, 0, 0)).save(image)
    (tmp_path / "one.yaml").write_text(
        "base: quickstart\n"
        "set:\n"
        "  model: {name: vit_tiny_patch16_224, weights: none, image_size: 8, args: {patch_size: 4, embed_dim: 12, "
        "depth: 1, num_heads: 1}}\n"
        "  method: {name: linear}\n"
        "  data: {name: folder, root: images, batch_size: 2, split: {val: 0.0}}\n"
        "  train: {epochs: 2, log_every: 1, cache_features: 0}\n"
    )

    (tmp_path / "site" / "sitecustomize.py").parent.mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(STOPPING)
    folder = tmp_path / "out" / "quickstart"

    def made(variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mlx_peft", "sweep", "one.yaml", "--out", "out", "--json"]
        return subprocess.run(
            command, cwd=tmp_path, env=os.environ | variables, capture_output=True, text=True, timeout=HUNG
        )

    def stopped(how: signal.Signals) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
        done = made({"PYTHONPATH": path, "STOPPED_BY": str(int(how))})  # the run writes what this reads: it is over
        assert (folder / "metrics.jsonl").exists() and not (folder / "result.json").exists()
        return done

    assert stopped(signal.SIGKILL).returncode == -signal.SIGKILL
    interrupted = stopped(signal.SIGINT)
    assert interrupted.returncode == 130, interrupted.stderr
    assert "going on after step" in interrupted.stderr
    assert [run["status"] for run in json.loads(interrupted.stdout)["runs"]] == ["interrupted"]

    going_on = made({})
    assert going_on.returncode == 0, going_on.stderr
    assert "going on after step" in going_on.stderr
    (run,) = json.loads(going_on.stdout)["runs"]
    assert run["run_id"] == run["result"]["run_id"]
