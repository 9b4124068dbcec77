"""QA-LoRA: its equation, its exact merge into biases, its refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch  # noqa: F401  before MLX: see mlx_peft.backend.blas
from comparing import relative
from halves import half_of

import mlx_peft.backend.entry
import torch_ref.entry
from convert.base import load_base
from mlx_peft.artifacts.load import load_model, load_run
from mlx_peft.artifacts.merge import merge_run
from mlx_peft.core.errors import UserError
from mlx_peft.training.train import train

EXACT = 1e-5
"""Relative, float32: the same sums in another order."""


def near(a, b, tolerance=EXACT):
    return relative(a, b) <= tolerance


@pytest.mark.parametrize(
    ("pool", "bits", "targets"), half_of(["sum", "avg"], [8, 4, 3, 2], [["q", "v"], "all-linear"]), ids=str
)
def test_merged_into_biases_it_gives_the_logits_that_training_saw(build, batch, described, pool, bits, targets):
    quantize = {"bits": bits, "group_size": 32}
    alpha = {"sum": 0.5, "avg": 16.0}[pool]  # the same update: one 32 times as large would drown W in its rounding
    trainer = build({"name": "qalora", "rank": 4, "alpha": alpha, "pool": pool, "targets": targets}, quantize)
    bare = build({"name": "linear"}, quantize).model.merged()
    before, tensors = trainer.model.logits(batch[0]), trainer.model.merged()
    assert np.array_equal(trainer.model.logits(batch[0]), before)
    assert tensors.keys() == bare.keys()
    changed = {name for name, tensor in tensors.items() if not np.array_equal(tensor, bare[name])}
    heads = {"head.weight", "head.bias"}
    assert heads < changed and {name.rpartition(".")[2] for name in changed - heads} == {"biases"}
    config = described({"name": "linear"}, quantize)
    merged = type(trainer)(config, 5, replace(trainer.model.base, tensors=tensors))
    assert near(merged.model.logits(batch[0]), before)
    plain = type(trainer)(
        described({"name": "linear"}),
        5,
        replace(trainer.model.base, tensors=trainer.model.merged(dequantize=True), quantization=None),
    )
    assert near(plain.model.logits(batch[0]), before)
    assert sum(t.nbytes for t in tensors.values()) == sum(t.nbytes for t in bare.values())


def test_the_update_is_the_papers(build):
    """y - W x - b = s B A pool(x), transcribed."""
    for pool, over in (("sum", 1), ("avg", 32)):
        trainer = build(
            {"name": "qalora", "rank": 4, "alpha": 12, "pool": pool, "targets": ["fc2"]}, {"bits": 4, "group_size": 32}
        )
        A, B = (trainer.model.adapter()[f"blocks.0.mlp.fc2.lora_{name}"] for name in "AB")
        assert A.shape == (4, 256 // 32) and B.shape == (64, 4)
        bare = build({"name": "linear"}, {"bits": 4, "group_size": 32}).model.merged()
        moved = trainer.model.merged()["blocks.0.mlp.fc2.biases"] - bare["blocks.0.mlp.fc2.biases"]
        assert near(moved, 12 / 4 * B @ A / over, 1e-4)  # a difference of larger numbers


def test_both_backends_have_equal_gradients(described, batch):
    config = described({"name": "qalora", "targets": ["q", "v", "fc2"], "pool": "avg"}, {"bits": 3, "group_size": 32})
    base = load_base(config.model, 5, 0, config.quantize)
    a, b = (backend.build_trainer(config, 5, base) for backend in (mlx_peft.backend.entry, torch_ref.entry))
    random = np.random.default_rng(0)
    start = {n: t + 0.05 * random.standard_normal(t.shape).astype(np.float32) for n, t in b.model.adapter().items()}
    for trainer in (a, b):
        trainer.model.load_adapter(start)
    assert near(a.model.logits(batch[0]), b.model.logits(batch[0]))
    (loss, mine), (other, theirs) = a.loss_and_gradients(*batch), b.loss_and_gradients(*batch)
    assert abs(loss - other) <= EXACT * other
    assert all(near(mine[name], theirs[name], 1e-4) for name in theirs)


def test_a_merged_run_is_an_ordinary_quantised_model(described, batch, colours, tmp_path):
    config = described({"name": "qalora", "rank": 4}, {"bits": 4, "group_size": 32}, epochs=1)
    config = config.model_copy(update={"backend": "torch"})
    train(config, tmp_path / "run")
    merge_run(tmp_path / "run", tmp_path / "m")
    trained = load_run(tmp_path / "run").model.logits(batch[0])
    for name in ("mlx", "torch"):
        merged = load_model(tmp_path / "m", name)
        assert merged.base.quantization == config.quantize
        assert near(merged.model.logits(batch[0]), trained)


@pytest.mark.parametrize(
    ("method", "quantize", "message"),
    [
        ({}, None, "needs a quantised base"),
        ({"pool_size": 64}, {"bits": 4, "group_size": 32}, "64 is not the base's group, 32"),
        ({"rank": 100}, {"bits": 4, "group_size": 32}, "above the outputs"),
    ],
)
def test_what_could_not_merge_is_refused(build, method, quantize, message):
    with pytest.raises(UserError, match=message):
        build({"name": "qalora", **method}, quantize)
