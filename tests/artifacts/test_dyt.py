"""DyT from a run to whatever is made of one: the routers are part of the adapter, and fold into nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch  # noqa: F401  before MLX: see mlx_peft.backend.blas
from artifacts.coloured import BATCH, MODEL, OPTIONS, colours, command, trained  # noqa: F401  colours is a fixture
from comparing import LOGITS, relative
from PIL import Image

# isort: split

from convert.adapters.peft import read_adapter
from mlx_peft.artifacts.explain import SKIPPED, Explained, explain
from mlx_peft.artifacts.load import load_run
from mlx_peft.config.tokens import DyT, ToMe
from mlx_peft.core.errors import UserError
from mlx_peft.data.questions import about
from mlx_peft.protocols.loading import load_library
from mlx_peft.report.explained import reduced

DYT = "dyt rate=0.7"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "run", DYT)


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_a_run_is_opened_with_the_routers_that_were_trained_with_it(run: Path, backend: Any) -> None:
    adapter = read_adapter(run / "adapter")
    assert adapter.tokens == DyT(rate=0.7) and adapter.tensors["routers.weight"].shape == (2, 64)
    assert adapter.tensors["routers.bias"].any()  # it began as zero
    opened = load_run(run, backend)
    np.testing.assert_array_equal(opened.model.adapter()["routers.weight"], adapter.tensors["routers.weight"])
    assert relative(opened.model.logits(BATCH), load_run(run, "torch").model.logits(BATCH)) <= LOGITS
    without = load_run(run, backend, tokens=None).model
    assert "routers.weight" not in without.adapter()
    assert relative(without.logits(BATCH), opened.model.logits(BATCH)) > 1e-3


def test_it_is_evaluated_and_asked_with_them_or_without(run: Path, tmp_path: Path) -> None:
    losses = [
        json.loads(command("eval", run, "--json", *more).stdout)["metrics"]["loss"]
        for more in ([], ["--tokens", "dyt"], ["--tokens", "none"], ["--tokens", "tome r=3"])
    ]
    assert losses[0] == losses[1] and len(set(losses)) == 3
    Image.fromarray(BATCH[0]).save(tmp_path / "a.png")
    answers = [
        json.loads(command("predict", run, tmp_path / "a.png", "--json", *more).stdout)
        for more in ([], ["--tokens", "none"])
    ]
    assert answers[0] != answers[1]


def test_what_has_no_routers_does_not_get_any(tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain")
    done = command("eval", plain, "--tokens", "dyt")
    assert done.exit_code == 2 and "dyt has routers, which are trained with an adapter" in done.stderr


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_what_goes_past_an_mlp_is_told_and_drawn(run: Path, tmp_path: Path, backend: Any) -> None:
    Image.fromarray(BATCH[0]).save(tmp_path / "a.png")
    loaded = load_run(run, backend)
    (found,) = explain(loaded, about([tmp_path / "a.png"], None))
    assert isinstance(found, Explained) and reduced(found)
    *routed, last = loaded.model.explain(np.array(found.pixels)[None]).blocks
    for block, tokens, count in zip(routed, found.tokens, found.counts, strict=False):
        assert block.fed is not None and 0 < block.fed[0, 1:].sum() < 16
        np.testing.assert_array_equal(tokens.ravel() == SKIPPED, ~block.fed[0, 1:])
        assert count == block.fed.sum(), "the class token among them"
    assert last.fed is None and found.counts[-1] == 17 and (found.tokens[-1] >= 0).all()


def test_it_is_merged_without_its_routers_or_not_at_all(run: Path, tmp_path: Path) -> None:
    done = command("merge", run, tmp_path / "merged")
    assert done.exit_code == 2 and "tokens: dyt cannot be merged: its routers decide anew for each image" in done.stderr
    assert not (tmp_path / "merged").exists()
    assert command("merge", run, tmp_path / "merged", "--tokens", "none").exit_code == 0
    weights = MODEL | {"weights": str(run)}
    with pytest.raises(UserError, match="dyt cannot be merged"):
        trained(tmp_path / "next", DYT, model=weights)


def test_a_run_goes_on_from_another_s_routers(run: Path, tmp_path: Path) -> None:
    method = {"name": "lora", "rank": 4, "from": str(run)}
    still = {"epochs": 1, "optimizer": {"name": "sgd", "lr": 1e-12}}
    after = read_adapter(trained(tmp_path / "next", DYT, method=method, train=still) / "adapter")
    before = read_adapter(run / "adapter")
    np.testing.assert_allclose(after.tensors["routers.weight"], before.tensors["routers.weight"], atol=1e-6)
    with pytest.raises(UserError, match="routers"):
        trained(tmp_path / "plain", method=method)


def test_routers_are_not_combined(run: Path, tmp_path: Path) -> None:
    done = command("combine", run, run / "adapter", "--out", tmp_path / "both")
    assert done.exit_code == 2 and "trained with routers (tokens: dyt)" in done.stderr, done.output


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_in_a_notebook_an_adapter_brings_its_routers_and_takes_them_along(
    run: Path, tmp_path: Path, backend: Any
) -> None:
    library = load_library(backend)
    model = library.create_model("vit_tiny_patch16_224", **OPTIONS)
    library.load_adapter(model, run)
    expected = load_run(run, "torch").model.logits(BATCH)
    assert relative(model.logits(BATCH), expected) <= LOGITS
    library.save_adapter(model, tmp_path / "saved")
    again = library.create_model("vit_tiny_patch16_224", tokens=ToMe(r=3), **OPTIONS)
    library.load_adapter(again, tmp_path / "saved")
    np.testing.assert_array_equal(again.logits(BATCH), model.logits(BATCH))
    with pytest.raises(UserError, match="dyt cannot be merged"):
        library.merge(again)


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_by_hand_the_routers_are_trained_too(backend: Any) -> None:
    library = load_library(backend)
    model = library.create_model("vit_tiny_patch16_224", tokens=DyT(rate=0.9, weight=50), **OPTIONS)
    library.add_adapter(model, "linear")
    before = library.adapter(model)[1]
    optimizer = library.optimizer(model, lr=1e-2)
    step = library.training_step(model, optimizer)
    losses = [step(BATCH, [0, 1, 2, 0]) for _ in range(12)]
    after = library.adapter(model)[1]
    assert before.keys() == after.keys() >= {"routers.weight", "routers.bias"}
    assert (after["routers.bias"] != before["routers.bias"]).all() and losses[-1] < losses[0]


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_a_bank_refuses_routers_by_name(run: Path, backend: Any) -> None:
    library = load_library(backend)
    for tokens in (None, DyT(rate=0.7)):
        model = library.create_model("vit_tiny_patch16_224", tokens=tokens, **OPTIONS)
        with pytest.warns(UserWarning, match="whose reducer has trained routers \\(dyt\\)"):
            assert len(library.load_adapters(model, run.parent)) == 0


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_compiled_inference_gives_the_same(run: Path, backend: Any) -> None:
    library = load_library(backend)
    model = library.create_model("vit_tiny_patch16_224", **OPTIONS)
    library.load_adapter(model, run)
    assert relative(library.compiled(model, precision="float32").logits(BATCH), model.logits(BATCH)) <= LOGITS
