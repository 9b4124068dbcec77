"""(IA)^3 against its equation in NumPy; counts against the closed formula; merging."""

import numpy as np
import pytest
from comparing import relative

from mlx_peft.config.methods import IA3
from mlx_peft.core.errors import UserError

ROUNDING = 2e-6
"""Relative, float32: two orders of the same few sums."""
BACKWARD = 2e-5
"""Relative, float32: the same through a backward pass."""

WIDTH, HIDDEN, DEPTH, CLASSES = 48, 192, 3, 5
OUTPUT = {"qkv": 3 * WIDTH, "proj": WIDTH, "fc1": HIDDEN, "fc2": WIDTH}
INPUT = {"qkv": WIDTH, "proj": WIDTH, "fc1": WIDTH, "fc2": HIDDEN}
PATHS = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
CASES = {
    "default": (("k", "v", "fc2"), ("fc2",)),
    "all": (("qkv", "proj", "fc1", "fc2"), ("fc1", "fc2")),
    "outputs": (("q", "fc1", "fc2"), ()),
    "input of qkv": (("qkv",), ("qkv",)),
}


def ia3(case, **options):
    return {"name": "ia3", "targets": CASES[case][0], "feedforward": CASES[case][1], **options}


@pytest.mark.parametrize("case", CASES)
def test_merged_weights_and_biases_are_the_equations(build, away, case):
    targets, feedforward = CASES[case]
    base = away(build({"name": "full"}).model.adapter())  # biases start at zero, which hides one that is not scaled
    trainer = build(ia3(case), weights=base)
    trainer.model.load_adapter(away(trainer.model.adapter(), 0.3))
    merged, tensors = trainer.model.merged(), trainer.model.adapter()
    assert merged.keys() == base.keys()
    for block in range(DEPTH):
        for name, path in PATHS.items():
            layer = f"blocks.{block}.{path}"
            weight, bias = base[f"{layer}.weight"].astype(np.float64), base[f"{layer}.bias"].astype(np.float64)
            parts = [part for part in "qkv" if part in targets]
            if name in feedforward:
                weight = weight * tensors[f"{layer}.ia3_l"]
            elif name in targets:
                weight, bias = weight * tensors[f"{layer}.ia3_l"][:, None], bias * tensors[f"{layer}.ia3_l"]
            elif name == "qkv" and parts:
                for part, own in zip(parts, np.split(tensors[f"{layer}.ia3_l"], len(parts)), strict=True):
                    rows = slice("qkv".index(part) * WIDTH, ("qkv".index(part) + 1) * WIDTH)
                    weight[rows] *= own[:, None]
                    bias[rows] *= own
            assert relative(merged[f"{layer}.weight"], weight) <= ROUNDING
            np.testing.assert_allclose(merged[f"{layer}.bias"], bias, rtol=ROUNDING)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("case", CASES)
def test_merging_leaves_the_logits_and_the_model_alone(build, batch, away, case):
    full = build({"name": "full"})
    weights = away(full.model.adapter())
    trainer = build(ia3(case), weights=weights)
    start = away(trainer.model.adapter(), 0.3)
    trainer.model.load_adapter(start)
    before, merged = trainer.model.logits(batch[0]), trainer.model.merged()
    np.testing.assert_array_equal(trainer.model.logits(batch[0]), before)
    full.model.load_adapter(merged)
    assert relative(full.model.logits(batch[0]), before) <= 1e-5
    full.model.load_adapter(weights | {name: tensor for name, tensor in start.items() if name.startswith("head")})
    assert relative(full.model.logits(batch[0]), before) > 1e-3, "the adapter must matter for this test to say anything"


@pytest.mark.parametrize("case", CASES)
def test_trained_parameters_are_the_closed_formula(build, case):
    targets, feedforward = CASES[case]
    trainer = build(ia3(case))
    per_block = sum(
        INPUT[t] if t in feedforward else WIDTH if t in ("q", "k", "v") else OUTPUT[t] for t in targets
    )  # fmt: skip
    assert trainer.model.parameters.adapter == DEPTH * per_block
    assert trainer.model.parameters.head == CLASSES * (WIDTH + 1)


def test_published_count_on_vit_b(build):
    """55,296 in all twelve blocks: keys, values and the inputs of fc2, 768 + 768 + 3072 each."""
    args = {"patch_size": 16, "embed_dim": 768, "depth": 1, "num_heads": 12}
    trainer = build({"name": "ia3"}, model={"name": "vit_base_patch16_224", "args": args})
    assert 12 * trainer.model.parameters.adapter == 55_296


def test_it_starts_as_the_bare_model(build, batch):
    linear, trainer = build({"name": "linear"}), build({"name": "ia3"})
    np.testing.assert_array_equal(trainer.model.logits(batch[0]), linear.model.logits(batch[0]))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_finite_differences(build, batch, away, case):
    trainer = build(ia3(case))
    start = away(trainer.model.adapter(), 0.3)
    trainer.model.load_adapter(start)
    _, gradients = trainer.loss_and_gradients(*batch)
    random, step = np.random.default_rng(2), 3e-2
    for name in [n for n in gradients if n.startswith("blocks.1")]:
        direction = random.standard_normal(start[name].shape).astype(np.float32)
        direction /= np.linalg.norm(direction)
        losses = []
        for sign in (1, -1):
            trainer.model.load_adapter(start | {name: start[name] + sign * step * direction})
            losses.append(trainer.loss_and_gradients(*batch)[0])
        # Central difference: an error of step^2 = 1e-3 relative, and 1e-7 / step of rounding in the loss.
        slope = float((gradients[name] * direction).sum())
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(slope, rel=2e-2, abs=1e-4)


def test_checkpointing_gives_the_same_gradients(build, batch, away):
    plain, recomputed = build(ia3("default")), build(ia3("default"), train={"gradient_checkpointing": True})
    start = away(plain.model.adapter())
    results = []
    for trainer in (plain, recomputed):
        trainer.model.load_adapter(start)
        results.append(trainer.loss_and_gradients(*batch)[1])
    for name, gradient in results[0].items():
        assert np.linalg.norm(gradient) > 0
        assert relative(results[1][name], gradient) <= BACKWARD, name


def test_weight_decay_does_not_pull_the_factors_to_zero(build):
    trainer = build(ia3("all"))
    decays = trainer.experiment.rates.decays
    assert not any(decays(name, t.ndim) for name, t in trainer.model.adapter().items() if "ia3_l" in name)


@pytest.mark.parametrize("case", ["outputs", "input of qkv"])
def test_small_steps_away_from_one_are_not_rounded_off_in_bfloat16(build, batch, case):
    """bfloat16 has no number between 1 and 1.0078: factors cast to it would leave the logits as they were."""
    trainer = build(ia3(case), train={"precision": "bfloat16"})
    start = trainer.model.adapter()
    before = trainer.model.logits(batch[0])
    trainer.model.load_adapter({n: t * np.float32(1.003) if "ia3_l" in n else t for n, t in start.items()})
    assert not np.array_equal(trainer.model.logits(batch[0]), before)


@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 5e-2), ("float16", 1e-2)])
def test_half_precision_follows_float32(build, batch, away, precision, tolerance):
    """Relative errors of whole-ViT logits as expected of 8 and 11 bits of mantissa; the factors stay float32."""
    exact, half = build(ia3("default")), build(ia3("default"), train={"precision": precision})
    start = away(exact.model.adapter())
    for trainer in (exact, half):
        trainer.model.load_adapter(start)
    assert 0 < relative(half.model.logits(batch[0]), exact.model.logits(batch[0])) <= tolerance
    for name, tensor in half.model.adapter().items():
        np.testing.assert_array_equal(tensor, start[name])


def test_restricted_to_some_blocks_it_leaves_the_others_alone(build):
    trainer = build(ia3("default", blocks="last 2"))
    assert {name.split(".")[1] for name in trainer.model.adapter() if name.startswith("blocks.")} == {"1", "2"}
    assert trainer.model.parameters.adapter == 2 * (2 * WIDTH + HIDDEN)


@pytest.mark.parametrize("feedforward", [("k",), ("fc1",)])
def test_only_whole_targets_are_scaled_on_their_input(feedforward):
    with pytest.raises(UserError, match=feedforward[0]):
        IA3(targets=("k", "v", "fc2"), feedforward=feedforward)
