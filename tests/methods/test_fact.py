"""FacT-TK against the paper's tensor in NumPy; counts against the closed formula; merging."""

import numpy as np
import pytest
import torch  # before MLX: see mlx_peft.backend.blas
from comparing import relative

# isort: split
import mlx.core as mx

import mlx_peft.backend.trainer
from mlx_peft.backend.models import stochastic as in_mlx
from mlx_peft.config.methods import FacT
from mlx_peft.core.errors import UserError
from mlx_peft.vit.registry import find
from torch_ref.models import stochastic as in_torch

LOGITS = 1e-5
"""Relative, float32: some hundred roundings of 1.2e-7 on the way through the blocks."""
ROUNDING = 2e-6
"""Relative, float32: two orders of the same few sums."""
GRADIENTS = 2e-5
"""Relative, float32: the same sums in another order, through a backward pass."""

WIDTH, DEPTH, CLASSES, RANK = 48, 3, 5, 4
METHOD = {"name": "fact", "rank": RANK, "scale": 0.5}
SIZES = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
MODELS = {
    "plain": {},
    "a hidden layer of 2.5 widths": {"args": SIZES | {"mlp_ratio": 2.5}},
    "a hidden layer of half a width": {"args": SIZES | {"mlp_ratio": 0.5}},
    "swiglu": {"args": SIZES | {"mlp_layer": "swiglu", "act_layer": "silu", "mlp_ratio": 2.7}},
    "swiglu, packed": {"args": SIZES | {"mlp_layer": "swiglu_packed", "act_layer": "silu", "mlp_ratio": 5.5}},
}


def expected(weights, tensors, scale, depth) -> dict[str, np.ndarray]:
    """The paper: all weights as one tensor of ``dim x dim`` ones, and its update as one product of the factors."""
    U, V, C, P = (tensors[f"shared.fact_{name}"].astype(np.float64) for name in "UVCP")
    update = scale * np.einsum("jk,kab,da,eb->jde", P, C, U, V)  # input by output, as in x W
    result, used = dict(weights), 0
    for block in range(depth):
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc1_g", "mlp.fc1_x", "mlp.fc2"):
            name = f"blocks.{block}.{layer}.weight"
            if name not in weights:
                continue
            matrix = weights[name].T.astype(np.float64)  # in x out
            for top in range(0, matrix.shape[0], len(U)):
                for left in range(0, matrix.shape[1], len(U)):
                    piece = matrix[top : top + len(U), left : left + len(U)]
                    piece += update[used, : piece.shape[0], : piece.shape[1]]
                    used += 1
            result[name] = matrix.T
    assert used == len(P), "every weight of the tensor has its place"
    return result


@pytest.mark.one_in(2)
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_merged_weights_are_the_tensors(build, batch, away, model):
    weights = away(build({"name": "full"}, model).model.adapter())
    trainer = build(METHOD, model, weights=weights)
    tensors = away(trainer.model.adapter(), 0.3)
    trainer.model.load_adapter(tensors)
    merged, before = trainer.model.merged(), trainer.model.logits(batch[0])
    depth = trainer.model.base.architecture.depth
    theirs = expected(weights | {n: t for n, t in tensors.items() if "head" in n}, tensors, 0.5, depth)
    assert merged.keys() == theirs.keys(), "nothing of the method is left"
    assert max(relative(merged[name], theirs[name]) for name in theirs) <= ROUNDING

    plain = build({"name": "full"}, model)
    plain.model.load_adapter({name: tensor.astype(np.float32) for name, tensor in theirs.items()})
    assert relative(before, plain.model.logits(batch[0])) <= LOGITS
    bare = build({"name": "linear"}, model, weights=weights | {n: t for n, t in tensors.items() if "head" in n})
    assert relative(bare.model.logits(batch[0]), before) > 1e-2, "the update must matter for this to say anything"


def test_merging_leaves_the_model_alone(build, batch, away):
    trainer = build(METHOD)
    start = away(trainer.model.adapter())
    trainer.model.load_adapter(start)
    before = trainer.model.logits(batch[0])
    trainer.model.merged()
    np.testing.assert_array_equal(trainer.model.logits(batch[0]), before)
    after = trainer.model.adapter()
    assert after.keys() == start.keys() and all(np.array_equal(after[name], start[name]) for name in start)
    float(trainer.train_step(*batch, 1e-2))
    assert not np.array_equal(trainer.model.adapter()["shared.fact_U"], start["shared.fact_U"])


def test_trained_parameters_are_the_closed_formula(build):
    trainer = build(METHOD)
    assert trainer.model.parameters.adapter == 2 * WIDTH * RANK + 12 * DEPTH * RANK + RANK**3
    assert trainer.model.parameters.head == CLASSES * (WIDTH + 1)
    assert trainer.model.parameters.adapter + trainer.model.parameters.head == sum(
        t.size for t in trainer.model.adapter().values()
    )


def test_a_base_model_is_a_tensor_of_144_weights():
    """12 a block, 12 blocks: with rank 16, 2 * 768 * 16 + 144 * 16 + 16^3 = 30,976 parameters."""
    layers = FacT(rank=16).layers(find("vit_base_patch16_224").architecture)
    assert [weights.start for _, weights in layers[:4]] == [0, 3, 4, 8]
    assert [weights.stop for _, weights in layers[-4:]] == [135, 136, 140, 144]


def test_some_blocks_alone(build, batch, away):
    weights = away(build({"name": "full"}).model.adapter())
    trainer = build(METHOD | {"blocks": "last 2"}, weights=weights)
    trainer.model.load_adapter(away(trainer.model.adapter()))
    assert trainer.model.adapter()["shared.fact_P"].shape == (24, RANK)
    merged = trainer.model.merged()
    changed = {name for name in weights if not np.array_equal(merged[name], weights[name])}
    assert changed == {"head.weight", "head.bias"} | {
        f"blocks.{block}.{layer}.weight"
        for block in (1, 2)
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }


def test_it_starts_as_the_bare_model(build, batch):
    assert relative(build(METHOD).model.logits(batch[0]), build({"name": "linear"}).model.logits(batch[0])) <= LOGITS


def test_factors_start_within_their_bounds(build):
    tensors = build({"name": "fact", "rank": 16}).model.adapter()
    assert not tensors["shared.fact_V"].any()
    for name, shape, bound in (
        ("U", (WIDTH, 16), WIDTH**-0.5),
        ("C", (16, 16, 16), 3**0.5 / 16),
        ("P", (12 * DEPTH, 16), (6 / (16 + 12 * DEPTH)) ** 0.5),
    ):
        values = tensors[f"shared.fact_{name}"]
        assert values.shape == shape and np.abs(values).max() <= bound
        # 576 draws give the deviation of a uniform, bound / sqrt 3, to four standard errors of 2.6 per cent
        assert values.std() == pytest.approx(bound / np.sqrt(3), rel=0.11)


@pytest.mark.parametrize("model", ["plain", "a hidden layer of 2.5 widths", "a hidden layer of half a width"])
def test_the_two_ways_through_a_layer_give_the_same_logits_and_gradients(build, batch, away, model):
    """With dropout in the configuration but nothing dropped, factors are applied one by one, by plain autograd."""
    formed, stepwise = build(METHOD, MODELS[model]), build(METHOD | {"dropout": 0.5}, MODELS[model])
    start, results = away(formed.model.adapter(), 0.3), []
    for trainer in (formed, stepwise):
        trainer.model.load_adapter(start)
        results.append(trainer.loss_and_gradients(*batch))
    (loss, gradients), (loss_b, gradients_b) = results
    assert loss == pytest.approx(loss_b, rel=ROUNDING)
    assert all(gradients[name].any() for name in start)
    assert max(relative(gradients_b[name], gradients[name]) for name in start) <= GRADIENTS


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_checkpointing_gives_the_same_gradients(build, batch, away, dropout):
    method = METHOD | {"dropout": dropout}
    plain, recomputed = build(method), build(method, train={"gradient_checkpointing": True})
    start, gradients, losses = away(plain.model.adapter()), [], []
    for trainer in (plain, recomputed):
        trainer.model.load_adapter(start)
        gradients.append(trainer.loss_and_gradients(*batch)[1])
        losses.append([float(trainer.train_step(*batch, 1e-2)) for _ in range(2)])
    assert all(gradients[1][name].any() for name in start)
    assert max(relative(gradients[1][name], gradients[0][name]) for name in start) <= GRADIENTS
    assert losses[0] == pytest.approx(losses[1], rel=GRADIENTS)


def test_dropout_acts_on_the_update_in_training_alone(build, batch, away):
    """At a rate where everything is dropped, no update is left."""
    trainer, without, bare = build(METHOD | {"dropout": 1 - 1e-9}), build(METHOD), build({"name": "linear"})
    start = away(trainer.model.adapter(), 0.3)
    for one in (trainer, without):
        one.model.load_adapter(start)
    bare.model.load_adapter({n: t for n, t in start.items() if "head" in n})
    np.testing.assert_array_equal(trainer.model.logits(batch[0]), without.model.logits(batch[0]))
    kept, nothing_kept, loss = (float(one.train_step(*batch, 0.0)) for one in (without, bare, trainer))
    assert loss == pytest.approx(nothing_kept, rel=ROUNDING)
    assert abs(kept - nothing_kept) > 1e-3


@pytest.mark.parametrize("layer", ["fc1", "fc2"])
def test_what_is_dropped_is_between_sigma_and_v(build, away, layer):
    """At rank 1 that is one number a token and weight: a quarter of fc1's update goes as a whole, and on its own."""
    trainer = build({"name": "fact", "rank": 1, "dropout": 0.5})
    trainer.model.load_adapter(away(trainer.model.adapter(), 0.5))
    on_mlx = isinstance(trainer, mlx_peft.backend.trainer.Trainer)
    to_array, randomness = (mx.array, in_mlx.randomness) if on_mlx else (torch.from_numpy, in_torch.randomness)
    module = (
        trainer.model.network.blocks[0].mlp[layer] if on_mlx else getattr(trainer.model.network.blocks[0].mlp, layer)
    )
    inputs = module.base_layer.weight.shape[1]
    x = to_array(np.random.default_rng(0).standard_normal((4, 9, inputs)).astype(np.float32))

    def update() -> np.ndarray:
        return np.array((module(x) - module.base_layer(x)).tolist()).reshape(4, 9, -1, WIDTH)

    module.eval()
    whole = update()
    module.train()
    with randomness(0):
        dropped = update()
    kept = np.linalg.norm(dropped, axis=-1) > 0.5 * np.linalg.norm(whole, axis=-1)
    assert relative(dropped, 2 * kept[..., None] * whole) <= LOGITS  # differences of two outputs
    assert 0.2 < kept.mean() < 0.8
    if layer == "fc1":
        assert (kept.any(axis=2) & ~kept.all(axis=2)).any()


@pytest.mark.parametrize("model", ["plain", "a hidden layer of 2.5 widths"])
def test_half_precision_follows_float32(build, batch, away, model):
    exact, half = build(METHOD, MODELS[model]), build(METHOD, MODELS[model], {"precision": "bfloat16"})
    start = away(exact.model.adapter(), 0.1)
    for trainer in (exact, half):
        trainer.model.load_adapter(start)
    # 8 bits of mantissa through a whole ViT
    assert 0 < relative(half.model.logits(batch[0]), exact.model.logits(batch[0])) <= 5e-2
    assert all(np.array_equal(half.model.adapter()[name], start[name]) for name in start), "kept in float32"


def test_a_rank_above_the_models_width_is_refused(build):
    with pytest.raises(UserError, match="rank 49 is above the model's width, 48"):
        build(METHOD | {"rank": 49})


def test_an_adapter_comes_back_bit_for_bit_and_is_the_same_model(build, batch, away, saved):
    trainer = build(METHOD)
    trainer.model.load_adapter(away(trainer.model.adapter()))
    notes, again = saved(trainer)
    assert len(notes) == 1 and "Hugging Face PEFT has no method 'fact'" in notes[0]
    assert again.method == FacT(rank=RANK, scale=0.5)
    other = build(again.method.model_dump())
    other.model.load_adapter(again.tensors)
    np.testing.assert_array_equal(other.model.logits(batch[0]), trainer.model.logits(batch[0]))
