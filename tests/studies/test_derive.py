"""What is made of a finished run: its model in other forms, measured on the run's own images."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch  # noqa: F401  before MLX: see mlx_peft.backend.blas
from pydantic import ValidationError
from studies.graphs import graph_of, sweep_of

from mlx_peft.config.schema import Experiment
from mlx_peft.config.step import Step
from mlx_peft.config.study import Planned
from mlx_peft.core.errors import UserError
from mlx_peft.studies import ready
from mlx_peft.studies.derive import derive, step_id
from mlx_peft.training.predictions import read_predictions
from mlx_peft.training.train import train
from mlx_peft.vit.registry import find

SMALL = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
FOUR = {"bits": 4, "group_size": 32}


def experiment(method: dict[str, Any], **more: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "backend": "torch",
            "model": {"name": "vit_tiny_patch16_224", "weights": "none", "image_size": 32, "args": SMALL},
            "method": method,
            "data": {"name": "digits", "split": {"test": 0.2}},
            "train": {"epochs": 1},
            **more,
        }
    )


def planned(name: str, step: dict[str, Any], config: Experiment) -> list[Planned]:
    step = Step.model_validate(step)
    return [Planned(name, config), Planned(f"{name}-{step.folder}", config, step, name)]


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "lora"
    train(experiment({"name": "lora", "targets": "all-linear"}), out)
    return out


def result(path: Path) -> Any:
    return json.loads((path / "result.json").read_text())


def size(path: Path) -> int:
    return (path / "model" / "model.safetensors").stat().st_size


def test_a_merged_model_is_as_good_as_its_run(lora: Path, tmp_path: Path) -> None:
    made = derive(lora, Step(name="merged", merge="exact"), tmp_path / "merged")
    parent = result(lora)
    assert made == result(tmp_path / "merged")
    assert made["notes"] == parent["notes"]
    for split in ("val", "test"):
        assert made["metrics"][split]["top1"] == parent["metrics"][split]["top1"]
        assert made["metrics"][split]["loss"] == pytest.approx(parent["metrics"][split]["loss"], rel=1e-5)
    assert made["of"] == parent["run_id"] != made["run_id"]
    assert made["stored"]["total_bytes"] == size(tmp_path / "merged") == parent["stored"]["base_bytes"]
    assert parent["stored"]["adapter_bytes"] == parent["parameters"]["stored_bytes"]


def test_in_few_bits_it_takes_the_bytes_of_its_file(lora: Path, tmp_path: Path) -> None:
    made = derive(lora, Step.model_validate({"name": "w2", "quantize": {"bits": 2, "group_size": 32}}), tmp_path / "w2")
    assert made["stored"]["total_bytes"] == size(tmp_path / "w2") < 0.4 * result(lora)["stored"]["base_bytes"]
    assert made["metrics"]["val"]["loss"] != result(lora)["metrics"]["val"]["loss"]


def test_qa_lora_merged_is_as_good_and_as_small_as_the_bare_quantised_model(tmp_path: Path) -> None:
    train(experiment({"name": "qalora"}, quantize=FOUR), tmp_path / "run")
    made = derive(tmp_path / "run", Step(name="merged", merge="exact"), tmp_path / "merged")
    run = result(tmp_path / "run")
    assert made["metrics"]["test"]["top1"] == run["metrics"]["test"]["top1"]
    assert made["stored"]["total_bytes"] == run["stored"]["base_bytes"]


def test_what_was_trained_through_codes_may_be_written_plain(tmp_path: Path) -> None:
    step = Step(name="plain", merge="dequantize")
    step.check(experiment({"name": "lora"}, qat=FOUR), find("vit_tiny_patch16_224").architecture, None)


def test_what_is_simulated_is_called_so_and_stores_nothing(lora: Path, tmp_path: Path) -> None:
    step = Step.model_validate({"name": "w8a8", "simulate": {"weights": 8, "activations": 8, "images": 4}})
    assert step.folder == "w8a8-simulated"
    made = derive(lora, step, tmp_path / "x")
    assert made["stored"] is None and made["report"]["images"]["count"] == 4
    assert made["report"]["images"]["sha256"] != made["splits"]["train"]["sha256"]
    assert abs(made["metrics"]["val"]["top1"] - result(lora)["metrics"]["val"]["top1"]) < 0.05  # eight bits are many
    assert not (tmp_path / "x" / "model").exists()


def test_a_finished_step_is_not_made_again_and_half_of_one_is(lora: Path, tmp_path: Path) -> None:
    step, out = Step(name="merged", merge="exact"), tmp_path / "out"
    (out / "model").mkdir(parents=True)
    (out / "model" / "half").touch()
    (out / ".model.abc123" / "new").mkdir(parents=True)  # where a killed process was writing
    made = derive(lora, step, out)
    assert {path.name for path in out.iterdir()} == {
        ".lock",
        "model",
        "predictions.npz",
        "result.json",
        "SHA256SUMS.txt",
    }
    assert not (out / "model" / "half").exists()
    (out / "result.json").write_text(json.dumps(made | {"status": "as it was"}))
    (out / "SHA256SUMS.txt").unlink()
    assert derive(lora, step, out)["status"] == "as it was"
    with pytest.raises(UserError, match="holds something else"):
        derive(lora, Step.model_validate({"name": "merged", "quantize": FOUR}), out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"not empty \(notes.txt\)"):
        derive(lora, step, tmp_path / "mine")
    with pytest.raises(UserError, match="is not finished"):
        derive(tmp_path / "nowhere", step, tmp_path / "other")


def test_a_step_is_known_by_what_it_makes_of_which_run() -> None:
    merged = Step(name="merged", merge="exact")
    assert step_id("a", merged) == step_id("a", merged.model_copy(update={"name": "plain"}))
    assert step_id("a", merged) != step_id("b", merged)
    assert step_id("a", merged) != step_id("a", Step(name="merged", merge="dequantize"))


@pytest.mark.parametrize("keys", [{}, {"merge": "exact", "quantize": FOUR}], ids=str)
def test_a_step_is_one_thing(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="just one of merge"):
        Step.model_validate({"name": "x", **keys})


@pytest.mark.parametrize(
    ("config", "step", "message"),
    [
        (experiment({"name": "vpt"}), {"merge": "exact"}, "vpt cannot be merged"),
        (experiment({"name": "lora"}), {"merge": "requantize"}, "write merge: exact"),
        (experiment({"name": "lora"}, quantize=FOUR), {"merge": "exact"}, "does not merge into codes exactly"),
        (experiment({"name": "lora"}, quantize=FOUR), {"quantize": FOUR}, "in codes already"),
        (experiment({"name": "lora"}, qat=FOUR), {"quantize": FOUR}, "in codes already"),
    ],
)
def test_what_cannot_be_made_of_a_run_is_said_before_any_run_starts(
    config: Experiment, step: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"(?s)nothing was started.*run-x: .*{message}"):
        ready.check(planned("run", {"name": "x", **step}, config), tmp_path)


def test_nothing_is_made_of_a_run_that_failed(tmp_path: Path) -> None:
    graph = graph_of(planned("run", {"name": "merged", "merge": "exact"}, experiment({"name": "lora"})), tmp_path)
    worker = (sys.executable, "-I", "-S", "-c", "import sys; sys.exit('Traceback')")
    outcomes = {node.name: (node.status, node.error) for node in sweep_of(graph, tmp_path, command=worker).run()}
    assert outcomes["run"][0] == "failed"
    assert outcomes["run-merged"] == ("failed", "there is no finished run to make it of")


def test_a_run_is_measured_under_a_reducer_that_it_was_not_trained_with(lora: Path, tmp_path: Path) -> None:
    step = Step.model_validate({"name": "fewer", "tokens": {"name": "tome", "r": 4}})
    made = derive(lora, step, tmp_path / "fewer")
    assert made["tokens"] == "tome r=4" and made["stored"] is None
    assert made["metrics"]["test"]["loss"] != result(lora)["metrics"]["test"]["loss"]
    said = read_predictions(tmp_path / "fewer")
    assert said is not None and len(said["test"].logits) == made["metrics"]["test"]["count"]
