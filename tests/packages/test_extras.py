"""Each extra installs where nothing else is, and what it is for works there.

Environments with PyTorch take gigabytes for a while: these tests are among the slow ones, and each removes its own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from packages.environments import NEWEST, PYTHONS, ROOT, Environment, alone, with_the_oldest

pytestmark = pytest.mark.slow

STUDY = """\
base: quickstart
set: {train.epochs: 1, method: {name: linear}}
tune: {search: {train.optimizer.lr: {low: 1e-3, high: 1e-2, log: true}}, trials: 2}
runs: [{name: linear}]
"""
ASK = """\
import io, sys
import numpy as np
from PIL import Image
from mlx_peft.client import Client
held = io.BytesIO()
Image.fromarray(np.zeros((28, 28, 3), np.uint8)).save(held, "PNG")
(answer,) = Client(sys.argv[1]).classify([held.getvalue()])
print(answer.best.label)
"""


def installed(packed: SimpleNamespace, extra: str, folder: Path) -> Environment:
    environment = Environment.made(folder / extra, PYTHONS[NEWEST])
    environment.install(f"mlx-peft[{extra}] @ {packed.wheel.as_uri()}")
    return environment


def trained(environment: Environment, place: Path, *words: str) -> Path:
    """A run of a second: a linear probe on the shipped model."""
    environment.must_run(
        place, "mlx-peft", "train", "quickstart", "method.name=linear", "train.epochs=1", "--out", "runs/linear", *words
    )
    return place / "runs" / "linear"


def test_serve_answers(packed, on_disk, tmp_path):
    environment = installed(packed, "serve", on_disk)
    assert "--port" in environment.must_run(tmp_path, "mlx-peft", "serve", "--help")
    trained(environment, tmp_path)
    command = [environment.scripts / "mlx-peft", "serve", "runs/linear", "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, env=alone(), stdout=subprocess.PIPE, text=True) as process:
        try:
            line = next(line for line in process.stdout if line.startswith("serving"))
            address = re.search(r"http://\S+", line)[0]
            assert environment.must_run(tmp_path, "python", "-c", ASK, address).strip() in "0123456789"
        finally:
            process.kill()


def test_study_searches_and_has_ray_make_its_runs(packed, on_disk, tmp_path):
    environment = installed(packed, "study", on_disk)
    assert "--ray" in environment.must_run(tmp_path, "mlx-peft", "sweep", "--help")
    (tmp_path / "study.yaml").write_text(STUDY)
    environment.must_run(tmp_path, "mlx-peft", "sweep", "study.yaml", "--out", "runs", "--ray", "local")
    results = [json.loads(path.read_text()) for path in (tmp_path / "runs").rglob("result.json")]
    assert len(results) == 2, "the chosen trial goes on as the final run"
    assert [result["metrics"]["test"] is not None for result in results].count(True) == 1, "which alone is tested"


def test_track_writes_what_tensorboard_reads(packed, on_disk, tmp_path):
    environment = installed(packed, "track", on_disk)
    assert environment.must_run(tmp_path, "tensorboard", "--help")
    run = trained(environment, tmp_path, "track=[tensorboard]")
    read = "import sys; from tensorboard.backend.event_processing import plugin_event_accumulator as events; "
    read += "e = events.EventAccumulator(sys.argv[1]); e.Reload(); print(*e.Tags()['tensors'])"
    (folder,) = {events.parent for events in run.rglob("events.out.tfevents.*")}
    assert "loss" in environment.must_run(tmp_path, "python", "-c", read, str(folder))


def test_export_writes_onnx_and_proves_it(packed, on_disk, tmp_path):
    environment = installed(packed, "export", on_disk)
    assert "onnx" in environment.must_run(tmp_path, "mlx-peft", "convert", "--help")
    trained(environment, tmp_path)
    environment.must_run(tmp_path, "mlx-peft", "convert", "runs/linear", "model.onnx", "--to", "onnx")
    ask = "import sys, numpy as np, onnxruntime as o; s = o.InferenceSession('model.onnx'); "
    ask += "print(s.run(None, {'pixel_values': np.zeros((2, 3, 28, 28), np.float32)})[0].shape)"
    assert environment.must_run(tmp_path, "python", "-c", ask) == "(2, 10)\n"


def must_compute(environment: Environment, place: Path) -> None:
    """PyTorch's commands, and both backends agree on a step."""
    programs = os.pathsep.join((str(environment.scripts), os.environ["PATH"]))
    done = subprocess.run(
        ["bash", ROOT / ".github" / "torch_ref.sh", "out"],
        cwd=place, env=alone(PATH=programs), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = environment.run(place, "mlx-peft", "doctor", "--no-hub", "--json")
    assert said.returncode == 0, said.stdout
    small = ("--model", "vit_tiny_patch16_224", "--method", "lora", "--no-steps")
    environment.must_run(place, "mlx-peft", "parity", *small)


def test_torch_works_with_the_oldest_releases_that_it_allows(packed, on_disk, tmp_path):
    must_compute(with_the_oldest(packed.wheel, on_disk, "torch"), tmp_path)


def test_all_installs_together_and_computes(packed, on_disk, tmp_path):
    environment = installed(packed, "all", on_disk)
    assert "Fine-tune a model" in environment.must_run(tmp_path, "mlx-peft", "--help")
    must_compute(environment, tmp_path)
    names = "fastapi, mlflow, onnxruntime, optuna, pyarrow, ray, tensorboard, timm, trackio, wandb"
    environment.must_run(tmp_path, "python", "-c", f"import {names}")
