"""A run with fewer tokens, from its training to what is made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch  # before MLX: see mlx_peft.backend.blas
from artifacts.coloured import BATCH, OPTIONS, colours, command, trained  # noqa: F401  colours is a fixture
from comparing import LOGITS, relative
from PIL import Image
from training.prefixes import Watcher

from convert.adapters.peft import read_adapter
from mlx_peft.artifacts.convert import convert
from mlx_peft.artifacts.load import load_model, load_run
from mlx_peft.artifacts.simulate import simulate_run
from mlx_peft.config.simulation import Simulation
from mlx_peft.config.tokens import SkipViT, ToMe
from mlx_peft.core.errors import UserError
from mlx_peft.protocols.loading import load_library
from mlx_peft.training.run import RunFolder
from mlx_peft.training.train import train

TOME = ToMe(r=3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "run", "tome r=3")


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_a_run_is_opened_with_the_tokens_that_it_was_trained_with(run: Path, backend: Any) -> None:
    own, again, without = (load_run(run, backend, tokens=tokens).model.logits(BATCH) for tokens in ("own", TOME, None))
    assert np.array_equal(own, again) and relative(own, without) > 1e-3
    assert relative(own, load_run(run, "torch").model.logits(BATCH)) <= LOGITS


def test_the_result_says_what_it_was_trained_with(run: Path, tmp_path: Path) -> None:
    """For tables; that of a run with all tokens has no such entry, as before there were reducers."""
    plain = trained(tmp_path / "plain", "none", {"name": "linear"})
    results = [RunFolder(folder).read_result() or {} for folder in (run, plain)]
    assert [result.get("tokens") for result in results] == ["tome r=3", None] and "tokens" not in results[1]


def test_an_adapter_alone_says_what_it_was_trained_with(run: Path, tmp_path: Path) -> None:
    assert read_adapter(run / "adapter").tokens == TOME
    alone = tmp_path / "alone"
    alone.mkdir()
    for file in (run / "adapter").iterdir():
        (alone / file.name).write_bytes(file.read_bytes())
    assert np.array_equal(load_run(alone, "torch").model.logits(BATCH), load_run(run, "torch").model.logits(BATCH))


def test_it_is_evaluated_and_asked_with_other_tokens_where_that_is_said(run: Path, tmp_path: Path) -> None:
    found = {
        tokens: json.loads(command("eval", run, "--json", *(["--tokens", tokens] if tokens else [])).stdout)["metrics"]
        for tokens in ("", "tome r=3", "tome r=8", "none")
    }
    assert found[""] == found["tome r=3"]
    assert len({metrics["loss"] for metrics in found.values()}) == 3
    Image.fromarray(BATCH[0]).save(tmp_path / "a.png")
    answers = [
        json.loads(command("predict", run, tmp_path / "a.png", "--json", *more).stdout)
        for more in ([], ["--tokens", "none"])
    ]
    assert answers[0] != answers[1]


def test_what_is_no_reducer_of_the_model_is_one_message(run: Path) -> None:
    for tokens, said in (("tome r=9", "half of the model's 16 patches"), ("tomes", "did you mean 'tome'?")):
        done = command("eval", run, "--tokens", tokens)
        assert done.exit_code == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_the_merged_model_says_so_and_timm_takes_all_tokens(run: Path, tmp_path: Path) -> None:
    done = command("merge", run, tmp_path / "merged")
    assert done.exit_code == 0 and "tome r=3, which mlx-peft uses; timm passes it over" in done.stdout
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["tokens"] == {"name": "tome", "r": 3}
    merged = load_model(tmp_path / "merged", "torch")
    assert relative(merged.model.logits(BATCH), load_run(run, "torch").model.logits(BATCH)) <= LOGITS
    whole = load_model(tmp_path / "merged", "torch", None).model
    theirs = timm.create_model(f"local-dir:{tmp_path / 'merged'}", pretrained=True).eval()
    with torch.no_grad():
        expected = theirs(whole.read(BATCH).permute(0, 3, 1, 2)).numpy()
    assert relative(whole.logits(BATCH), expected) <= LOGITS
    assert command("merge", run, tmp_path / "plain", "--tokens", "none").exit_code == 0
    assert "tokens" not in json.loads((tmp_path / "plain" / "config.json").read_text())


def test_a_run_on_such_a_model_is_told_that_it_has_other_tokens(run: Path, tmp_path: Path) -> None:
    command("merge", run, tmp_path / "merged")
    experiment = RunFolder(run).read_config()
    model = experiment.model.model_copy(update={"weights": str(tmp_path / "merged")})
    watcher = Watcher()
    train(experiment.model_copy(update={"model": model, "tokens": None}), tmp_path / "next", progress=watcher)
    assert any("made with fewer tokens (tome r=3), and tokens here are: all of them" in note for note in watcher.notes)


def test_qalora_on_a_quantised_base_trains_merges_and_answers(tmp_path: Path) -> None:
    """With ToMe, in 4 bits, from the run to the merged model's answers."""
    run = trained(tmp_path / "run", "tome r=3", {"name": "qalora", "rank": 4}, quantize={"bits": 4, "group_size": 32})
    done = command("merge", run, tmp_path / "merged")
    assert done.exit_code == 0, done.output
    merged = load_model(tmp_path / "merged", "torch")
    assert merged.base.quantization is not None and merged.recipe.tokens == TOME
    for backend in ("mlx", "torch"):
        answers = load_model(tmp_path / "merged", backend).model.logits(BATCH)
        assert relative(answers, load_run(run, "torch").model.logits(BATCH)) <= LOGITS
    evaluated = [
        json.loads(command("eval", run, *more, "--json").stdout)["metrics"]["loss"]
        for more in ([], ["--model", tmp_path / "merged"])
    ]
    assert evaluated[0] == pytest.approx(evaluated[1], rel=1e-4)


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_in_a_notebook_an_adapter_brings_its_tokens(run: Path, backend: Any) -> None:
    library = load_library(backend)
    model = library.create_model("vit_tiny_patch16_224", **OPTIONS)
    library.load_adapter(model, run)
    assert model.tokens == TOME
    assert relative(model.logits(BATCH), load_run(run, "torch").model.logits(BATCH)) <= LOGITS


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_a_bank_has_the_models_tokens_and_refuses_an_adapter_of_others(run: Path, backend: Any) -> None:
    library = load_library(backend)
    plain = library.create_model("vit_tiny_patch16_224", **OPTIONS)
    with pytest.warns(UserWarning, match="trained with fewer tokens \\(tome r=3\\), and this model has all tokens"):
        assert len(library.load_adapters(plain, run.parent)) == 0
    model = library.create_model("vit_tiny_patch16_224", tokens=TOME, **OPTIONS)
    bank = library.load_adapters(model, run.parent)
    (logits,) = {row.tobytes() for row in bank.logits(BATCH[:1], "run")}
    expected = load_run(run, "torch").model.logits(BATCH[:1])
    assert relative(np.frombuffer(logits, np.float32), expected[0]) <= LOGITS


def test_activations_are_quantised_in_simulation_of_the_tokens_that_there_are(run: Path) -> None:
    (simulated,) = simulate_run(run, [Simulation(weights=8, activations=8)]).after
    assert simulated.logits < 0.1 and np.isfinite(simulated.metrics["loss"])


def test_other_formats_have_the_weights_alone_and_a_note_says_so(run: Path, tmp_path: Path) -> None:
    done = convert(str(run), tmp_path / "mlx", "mlx", backend="torch")
    assert any("used with fewer tokens (tome r=3)" in note for note in done.notes)
    assert load_model(tmp_path / "mlx", "torch").recipe.tokens == TOME
    with pytest.raises(UserError, match=r"tokens\.r"):
        load_run(run, "torch", tokens=ToMe(r=100))


def test_a_reducer_that_the_model_cannot_have_is_refused_before_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tokens\\.to: the model has no block 10"):
        trained(tmp_path / "run", str(SkipViT()), {"name": "linear"})
    assert not (tmp_path / "run").exists()


@pytest.mark.one_in(2)
@pytest.mark.parametrize("tokens", ["tome r=3", "evit keep=0.5 blocks=[1]", "skipvit keep=0.5 from=0 to=1"])
@pytest.mark.parametrize("last", [False, True], ids=["linear", "last block"])
def test_features_that_are_kept_give_the_run_that_keeps_none(tmp_path: Path, last: bool, tokens: str) -> None:
    method = {"name": "lora", "rank": 2, "blocks": "last 1"} if last else {"name": "linear"}
    runs = []
    for kept in (1, 0):
        runs.append(trained(tmp_path / str(kept), tokens, method, train={"epochs": 2, "cache_features": kept}))
    kept, without = (load_run(run, "torch").model.logits(BATCH) for run in runs)
    assert relative(kept, without) <= LOGITS
    results = [RunFolder(run).read_result() or {} for run in runs]
    assert results[1]["cached_features"] is None
    assert (results[0]["cached_features"] is None) == (last and tokens.startswith("tome"))
