"""A run whose adapter starts from what its images show: EVA looks once, and what it found is kept."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch  # noqa: F401  before MLX: see mlx_peft.backend.blas
from comparing import relative

import torch_ref.entry
from convert.adapters.peft import read_adapter
from mlx_peft.artifacts.load import load_run
from mlx_peft.config.methods import LoRA
from mlx_peft.config.schema import Experiment
from mlx_peft.core.errors import UserError
from mlx_peft.training import initial
from mlx_peft.training.run import RunFolder
from mlx_peft.training.train import train
from torch_ref import library

NEVER = {"epochs": 1, "optimizer": {"name": "sgd", "lr": 1e-12, "momentum": 0, "weight_decay": 0}}
"""After this an adapter is what it began as."""


def experiment(backend: str = "torch", **changes) -> Experiment:
    args = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    return Experiment.model_validate(
        {
            "backend": backend,
            "model": {"name": "vit_tiny_patch16_224", "weights": "none", "image_size": 32, "args": args},
            "method": {
                "name": "lora", "rank": 3, "targets": ["qkv", "proj", "fc2"], "init": "eva", "eva": {"batches": 3},
            },
            "data": {"name": "digits", "batch_size": 128, "augment": {"flip": True}},
            "train": NEVER,
        } | changes
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    for backend in ("torch", "mlx"):
        train(experiment(backend), place / backend)
    return place


def test_both_backends_start_from_the_same_ranks_and_directions(runs):
    one, other = (read_adapter(runs / backend / "adapter") for backend in ("torch", "mlx"))
    assert one.method == other.method and one.method.init == "eva"
    ranks = {path.removesuffix(".lora_B"): t.shape[1] for path, t in one.tensors.items() if path.endswith("lora_B")}
    assert max(ranks.values()) <= 6 and sum(ranks.values()) == 6 * 3
    for name, tensor in one.tensors.items():
        assert np.allclose(other.tensors[name], tensor, atol=1e-3), name
        assert not name.endswith("lora_A") or np.allclose(np.linalg.norm(tensor, axis=1), 1, atol=1e-5)


def test_the_same_batches_give_the_same_start(runs, tmp_path):
    train(experiment(), tmp_path / "again")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "again/adapter" / name).read_bytes() == (runs / "torch/adapter" / name).read_bytes()


def test_a_run_that_goes_on_does_not_look_again(runs, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("it looked again")

    shutil.copytree(runs / "torch", tmp_path / "run")
    monkeypatch.setitem(initial.STARTS, "images", refuse)  # type: ignore[index]
    longer = experiment(train=NEVER | {"epochs": 2})
    train(longer, tmp_path / "run", resume=True)
    before, after = (read_adapter(place / "adapter") for place in (runs / "torch", tmp_path / "run"))
    assert after.method == before.method
    for name, tensor in before.tensors.items():
        assert np.allclose(after.tensors[name], tensor, atol=1e-6), name
    with pytest.raises(AssertionError, match="looked again"):
        train(longer, tmp_path / "new")


def test_a_damaged_checkpoint_leaves_the_ranks_to_the_one_before(runs, tmp_path):
    shutil.copytree(runs / "torch", tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    expected = initial.ranks_in(folder)
    assert expected and not any("base" in name or "head" in name for name in expected)
    shutil.copy(folder.last, folder.previous)
    folder.last.write_bytes(b"damaged")
    assert initial.ranks_in(folder) == expected


def test_a_batch_that_is_trained_in_parts_is_looked_at_in_parts_and_only_at_what_is_needed(tmp_path, monkeypatch):
    seen, looked = [], torch_ref.entry.Model.record

    def record(model, images, observe, at=None):
        seen.append((len(images), frozenset(at)))
        looked(model, images, observe, at)

    monkeypatch.setattr(torch_ref.entry.Model, "record", record)
    train(experiment(train=NEVER | {"accumulate": 4}), tmp_path / "parts")
    adapted = {f"blocks.{block}.{layer}" for block in range(2) for layer in ("attn.qkv", "attn.proj", "mlp.fc2")}
    assert {count for count, _ in seen} == {32} and len(seen) % 4 == 0
    assert all(points <= adapted for _, points in seen) and seen[0][1] == adapted
    method = read_adapter(tmp_path / "parts" / "adapter").method
    assert sum(method.rank_of(path) for path in adapted) == 6 * 3


def test_the_run_and_its_adapter_alone_are_opened_with_their_ranks(runs):
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    run, alone = load_run(runs / "torch"), load_run(runs / "torch" / "adapter", "mlx")
    assert relative(alone.model.logits(images), run.model.logits(images)) <= 1e-5
    assert RunFolder(runs / "torch").read_config().method.rank_pattern == {}  # as the user wrote it


def test_a_batch_that_has_too_few_tokens_is_told(tmp_path):
    few = experiment().model_dump()
    few["method"] |= {"rank": 40, "eva": {"rho": 1.2, "batches": 1}}
    few["data"] |= {"batch_size": 1}
    with pytest.raises(
        UserError, match=r"eva follows 48 directions of what enters blocks\.0\.attn\.qkv, and all batches"
    ):
        train(Experiment.model_validate(few), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_start_is_not_asked_for_twice(tmp_path):
    with pytest.raises(UserError, match="init: eva makes a start, and from: elsewhere is another"):
        LoRA(**{"init": "eva", "from": "elsewhere"})


def test_a_model_in_a_notebook_has_no_training_images():
    model = library.create_model(
        "vit_tiny_patch16_224", weights="none", num_classes=3, image_size=32,
        args={"depth": 1, "embed_dim": 24, "num_heads": 3},
    )  # fmt: skip
    with pytest.raises(UserError, match="starts from training images, which a model does not hold"):
        library.add_adapter(model, LoRA(init="eva"))
