"""AdaLoRA against its equations in NumPy: the layer, the penalty, the importance of triplets, masks."""

import numpy as np
import pytest
from comparing import relative
from methods.adalora import ADAPTERS, AVERAGED, CLASSES, DEPTH, METHOD, ROUNDING, SGD, SHAPES, WIDTH, triplets

from mlx_peft.config.methods import AdaLoRA
from mlx_peft.core.errors import UserError


def penalty(tensors, weight=0.5):
    norms = []
    for adapter in ADAPTERS:
        A, B, _ = triplets(tensors, adapter)
        norms += [np.linalg.norm(A @ A.T - np.eye(4)), np.linalg.norm(B.T @ B - np.eye(4))]
    return weight * np.mean(norms)


def test_merged_weights_are_the_equations(build, away):
    trainer = build(METHOD)
    trainer.model.load_adapter(away(trainer.model.adapter()))
    base, merged, tensors = build({"name": "linear"}).model.merged(), trainer.model.merged(), trainer.model.adapter()
    for adapter in ADAPTERS:
        A, B, E = triplets(tensors, adapter)
        path, _, part = adapter.partition("/")
        rows = slice("qkv".index(part) * WIDTH, ("qkv".index(part) + 1) * WIDTH) if part else slice(None)
        expected = base[f"{path}.weight"][rows] + 6.0 / (4 + 1e-5) * B @ np.diag(E[:, 0]) @ A
        assert relative(merged[f"{path}.weight"][rows], expected) <= ROUNDING
    for block in range(DEPTH):
        for name in ("attn.qkv.weight", "attn.qkv.bias", "mlp.fc1.weight"):
            untouched = slice(WIDTH, 2 * WIDTH) if name == "attn.qkv.weight" else slice(None)
            name = f"blocks.{block}.{name}"
            np.testing.assert_array_equal(merged[name][untouched], base[name][untouched])


def test_merging_leaves_the_logits_and_the_model_alone(build, batch, away):
    trainer = build(METHOD)
    trainer.model.load_adapter(away(trainer.model.adapter(), 0.2))
    before = trainer.model.logits(batch[0])
    full = build({"name": "full"})
    full.model.load_adapter(trainer.model.merged())
    np.testing.assert_array_equal(trainer.model.logits(batch[0]), before)
    assert relative(full.model.logits(batch[0]), before) <= 1e-5
    zero = {name: t * ("lora_E" not in name) for name, t in trainer.model.adapter().items()}
    trainer.model.load_adapter(zero)
    assert relative(trainer.model.logits(batch[0]), before) > 1e-2, (
        "the triplets must matter for this test to say anything"
    )


def test_trained_parameters_are_the_closed_formulas(build):
    trainer = build(METHOD)
    assert trainer.model.parameters.adapter == DEPTH * sum(4 * (out + 1 + width) for out, width in SHAPES.values())
    assert trainer.model.parameters.head == CLASSES * (WIDTH + 1)


def test_it_starts_as_the_bare_model_from_normal_factors(build, batch):
    linear, trainer = build({"name": "linear"}), build(METHOD | {"targets": ["fc2"]})
    trainer.model.load_adapter(trainer.model.adapter() | linear.model.adapter())
    assert relative(trainer.model.logits(batch[0]), linear.model.logits(batch[0])) <= ROUNDING
    tensors = trainer.model.adapter()
    for kind in "AB":
        drawn = np.concatenate([tensors[f"blocks.{i}.mlp.fc2.lora_{kind}"].ravel() for i in range(DEPTH)])
        # Of n draws the standard deviation is known to 1/sqrt(2n), 3 per cent for the 576 of B: four times that.
        assert drawn.std() == pytest.approx(0.02, rel=0.12)
        assert abs(drawn.mean()) < 4 * 0.02 / np.sqrt(drawn.size)
    assert not any(t.any() for name, t in tensors.items() if "lora_E" in name)
    assert not np.array_equal(tensors["blocks.0.mlp.fc2.lora_A"], tensors["blocks.1.mlp.fc2.lora_A"])


def test_the_loss_has_the_penalty(build, batch, away):
    trainer, without = build(METHOD), build(METHOD | {"orth_weight": 0.0})
    start = away(trainer.model.adapter())
    losses = []
    for one in (trainer, without):
        one.model.load_adapter(start)
        losses.append(one.loss_and_gradients(*batch)[0])
        assert float(one.train_step(*batch, 1e-3)) == pytest.approx(losses[-1], rel=ROUNDING)
    assert losses[0] - losses[1] == pytest.approx(penalty(start), rel=1e-5)


def test_the_gradient_of_the_penalty_is_its_derivative(build, batch, away):
    trainer, without = build(METHOD), build(METHOD | {"orth_weight": 0.0})
    start = away(trainer.model.adapter())
    gradients = []
    for one in (trainer, without):
        one.model.load_adapter(start)
        gradients.append(one.loss_and_gradients(*batch)[1])
    random, step = np.random.default_rng(0), 1e-5
    for name in ("blocks.0.attn.qkv.lora_A", "blocks.1.mlp.fc2.lora_B", "blocks.2.attn.qkv.lora_B"):
        direction = random.standard_normal(start[name].shape)
        ends = [penalty(start | {name: start[name] + sign * step * direction}) for sign in (1, -1)]
        found = ((gradients[0][name].astype(np.float64) - gradients[1][name]) * direction).sum()
        assert found == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-3)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_orthonormal_factors_have_no_penalty_and_finite_gradients(build, batch, precision):
    trainer = build(METHOD, train={"precision": precision})
    start = trainer.model.adapter()
    for name, tensor in start.items():
        if "lora_A" in name:
            start[name] = np.tile(np.eye(4, tensor.shape[1]), (len(tensor) // 4, 1)).astype(np.float32)
        if "lora_B" in name:
            start[name] = np.tile(np.eye(48, 4), (len(tensor) // 48, 1)).astype(np.float32)
    assert penalty(start) == 0
    trainer.model.load_adapter(start)
    _, gradients = trainer.loss_and_gradients(*batch)
    assert all(np.isfinite(g).all() for g in gradients.values())
    float(trainer.train_step(*batch, 1e-3))
    assert all(np.isfinite(t).all() for t in trainer.model.adapter().values())


def test_gradients_are_those_of_finite_differences(build, batch, away):
    trainer = build(METHOD)
    start = away(trainer.model.adapter(), 0.2)
    trainer.model.load_adapter(start)
    _, gradients = trainer.loss_and_gradients(*batch)
    random, step = np.random.default_rng(2), 1e-2
    for name in ("blocks.0.attn.qkv.lora_E", "blocks.1.mlp.fc2.lora_E", "blocks.2.attn.proj.lora_A", "head.weight"):
        direction = random.standard_normal(start[name].shape).astype(np.float32)
        direction /= np.linalg.norm(direction)
        losses = []
        for sign in (1, -1):
            trainer.model.load_adapter(start | {name: start[name] + sign * step * direction})
            losses.append(trainer.loss_and_gradients(*batch)[0])
        # Central difference: an error of step^2 = 1e-4 relative, and 1e-7 / step = 1e-5 of rounding in the loss.
        slope = float((gradients[name] * direction).sum())
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(slope, rel=2e-2, abs=2e-4)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("options", [{"accumulate": 2}, {"gradient_checkpointing": True}], ids=str)
def test_accumulation_and_checkpointing_change_no_step(build, batch, away, options):
    plain, other = build(METHOD, train={"optimizer": SGD}), build(METHOD, train={"optimizer": SGD, **options})
    start = away(plain.model.adapter())
    losses = []
    for trainer in (plain, other):
        trainer.model.load_adapter(start)
        losses.append([float(trainer.train_step(*batch, 0.1, observe=True)) for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=2e-5)
    for name, tensor in plain.model.adapter().items():
        assert relative(other.model.adapter()[name], tensor) <= 2e-5
    for adapter, scores in plain.scores().items():
        assert relative(other.scores()[adapter], scores) <= AVERAGED


def test_dropout_is_on_the_input_of_A_alone(build, batch, away):
    """In expectation nothing changes; without triplets nothing is dropped at all."""
    trainer = build(METHOD | {"dropout": 0.5, "orth_weight": 0.0}, train={"optimizer": SGD})
    start = away(trainer.model.adapter(), 0.2)
    exact = {}
    for name, tensors in (("with", start), ("without", {n: t * ("lora_E" not in n) for n, t in start.items()})):
        trainer.model.load_adapter(tensors)
        exact[name] = trainer.loss_and_gradients(*batch)[0]
        trainer.step = 0
        exact[f"{name} dropout"] = float(trainer.train_step(*batch, 0.0))
    assert exact["without dropout"] == pytest.approx(exact["without"], rel=1e-5)
    assert abs(exact["with dropout"] - exact["with"]) > 1e-4


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 5e-2), ("float16", 1e-2)])
def test_half_precision_follows_float32(build, batch, away, precision, tolerance):
    """Relative errors of whole-ViT logits as expected of 8 and 11 bits of mantissa."""
    exact, half = build(METHOD), build(METHOD, train={"precision": precision})
    start = away(exact.model.adapter(), 0.02)
    for trainer in (exact, half):
        trainer.model.load_adapter(start)
    assert 0 < relative(half.model.logits(batch[0]), exact.model.logits(batch[0])) <= tolerance
    losses = [[float(trainer.train_step(*batch, 1e-3)) for _ in range(3)] for trainer in (half, exact)]
    assert losses[0] == pytest.approx(losses[1], rel=tolerance)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_rank": 49, "targets": ["q"]}, r"rank 49 is above the width of blocks\.0\.attn\.qkv: a part is 48 x 48"),
        ({"blocks": [7]}, "the model has no block 7"),
    ],
)
def test_what_cannot_be_is_refused_before_training(build, changes, message):
    architecture, method = build(METHOD).model.base.architecture, AdaLoRA.model_validate(METHOD | changes)
    with pytest.raises(UserError, match=message):
        method.check(architecture)
        method.check_new(architecture)


def test_a_budget_above_the_ranks_is_refused():
    with pytest.raises(UserError, match="target_rank 9 is a budget above the initial rank 8"):
        AdaLoRA(init_rank=8, target_rank=9)
