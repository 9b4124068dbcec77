"""VeRA against its equation in NumPy; counts against the closed formula; merging; its shared projections."""

import numpy as np
import pytest
from comparing import relative

from mlx_peft.config.methods import VeRA

ROUNDING = 2e-6
"""Relative, float32: two orders of the same few sums."""
BACKWARD = 2e-5
"""Relative, float32: the same through a backward pass."""

WIDTH, HIDDEN, DEPTH, CLASSES, RANK = 48, 192, 3, 5, 16
OUTPUT = {"qkv": 3 * WIDTH, "proj": WIDTH, "fc1": HIDDEN, "fc2": WIDTH}
INPUT = {"qkv": WIDTH, "proj": WIDTH, "fc1": WIDTH, "fc2": HIDDEN}
PATHS = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
TARGETS = [("q", "v"), ("qkv", "proj", "fc1", "fc2"), ("v", "fc2"), ("q", "k", "v", "proj"), ("fc1",)]


def vera(*targets, **options):
    return {"name": "vera", "rank": RANK, "targets": targets, **options}


def expected_delta(tensors, path, parts, outputs, inputs) -> np.ndarray:
    """diag(lambda_b) B diag(lambda_d) A by the equation; each part on its own third of the rows."""
    A, B = (tensors[f"shared.vera_{name}"].astype(np.float64) for name in "AB")
    d, b = (tensors[f"{path}.vera_lambda_{name}"].astype(np.float64) for name in "db")
    delta, height = np.zeros((outputs, inputs)), outputs // 3 if parts else outputs
    for i, part in enumerate(parts or "q"):
        start = "qkv".index(part) * height
        scaled = np.diag(d[i * RANK : (i + 1) * RANK]) @ A[:, :inputs]
        delta[start : start + height] = np.diag(b[i * height : (i + 1) * height]) @ B[:height] @ scaled
    return delta


@pytest.mark.parametrize("targets", TARGETS)
def test_merged_weights_are_the_equations(build, away, targets):
    trainer = build(vera(*targets))
    trainer.model.load_adapter(away(trainer.model.adapter()))
    base, merged, tensors = build({"name": "linear"}).model.merged(), trainer.model.merged(), trainer.model.adapter()
    assert merged.keys() == base.keys(), "a plain model has no projections"
    parts = [part for part in "qkv" if part in targets]
    for block in range(DEPTH):
        for name, path in PATHS.items():
            weight = base[f"blocks.{block}.{path}.weight"]
            if name in targets or (name == "qkv" and parts):
                own = parts if name == "qkv" else []
                weight = weight + expected_delta(tensors, f"blocks.{block}.{path}", own, OUTPUT[name], INPUT[name])
            assert relative(merged[f"blocks.{block}.{path}.weight"], weight) <= ROUNDING
            np.testing.assert_array_equal(merged[f"blocks.{block}.{path}.bias"], base[f"blocks.{block}.{path}.bias"])


@pytest.mark.parametrize("targets", TARGETS[:3])
def test_merging_leaves_the_logits_and_the_model_alone(build, batch, away, targets):
    trainer = build(vera(*targets))
    trainer.model.load_adapter(away(trainer.model.adapter()))
    before, tensors = trainer.model.logits(batch[0]), trainer.model.adapter()
    merged = trainer.model.merged()
    np.testing.assert_array_equal(trainer.model.logits(batch[0]), before)
    for name, tensor in trainer.model.adapter().items():
        np.testing.assert_array_equal(tensor, tensors[name])
    bare = build({"name": "linear"})
    bare.model.load_adapter({name: merged[name] for name in bare.model.adapter()})
    assert relative(bare.model.logits(batch[0]), before) > 1e-3, "the adapter must matter for this test to say anything"
    full = build({"name": "full"})
    full.model.load_adapter(merged)
    assert relative(full.model.logits(batch[0]), before) <= 1e-5


@pytest.mark.parametrize("targets", TARGETS)
def test_trained_parameters_are_the_closed_formula(build, targets):
    trainer = build(vera(*targets))
    per_block = sum(RANK + (WIDTH if target in "qkv" and target != "qkv" else OUTPUT[target]) for target in targets)
    assert trainer.model.parameters.adapter == DEPTH * per_block
    assert trainer.model.parameters.head == CLASSES * (WIDTH + 1)


def test_published_count_on_queries_and_values_of_vit_b(build):
    """24,576 in all twelve blocks at rank 256 (Kopiczko et al., table of ViT-B)."""
    args = {"patch_size": 16, "embed_dim": 768, "depth": 1, "num_heads": 12}
    trainer = build({"name": "vera"}, model={"name": "vit_base_patch16_224", "args": args})
    assert 12 * trainer.model.parameters.adapter == 24_576


def test_it_starts_as_the_bare_model_with_pefts_initial_vectors(build, batch):
    linear, trainer = build({"name": "linear"}), build(vera("q", "v", d_initial=0.25))
    assert relative(trainer.model.logits(batch[0]), linear.model.logits(batch[0])) <= ROUNDING
    tensors = trainer.model.adapter()
    assert (tensors["blocks.1.attn.qkv.vera_lambda_d"] == np.float32(0.25)).all()
    assert not tensors["blocks.1.attn.qkv.vera_lambda_b"].any()


@pytest.mark.parametrize(
    ("targets", "inputs", "outputs"), [("qv", 48, 48), (["v", "fc1"], 48, 192), (["fc2"], 192, 48)]
)
def test_projections_are_as_large_as_the_largest_layer_or_part(build, targets, inputs, outputs):
    tensors = build(vera(*targets)).model.adapter()
    assert tensors["shared.vera_A"].shape == (RANK, inputs)
    assert tensors["shared.vera_B"].shape == (outputs, RANK)


def test_projections_come_from_their_key_alone_and_stay(build, batch):
    options = {"optimizer": {"name": "adamw", "weight_decay": 0.5}}
    trainer, other = build(vera("q", "v"), train=options), build(vera("q", "v", projection_key=1))
    before = trainer.model.adapter()
    assert not np.array_equal(before["shared.vera_A"], other.model.adapter()["shared.vera_A"])
    for _ in range(3):
        float(trainer.train_step(*batch, 1e-2))
    after = trainer.model.adapter()
    changed = {name.rpartition(".")[2] for name in after if not np.array_equal(after[name], before[name])}
    assert changed == {"vera_lambda_b", "vera_lambda_d", "weight", "bias"}
    assert not any(trainer.experiment.rates.decays(name, t.ndim) for name, t in after.items() if "lambda" in name)


def test_other_projections_can_be_loaded_after_use(build, batch, away, compiled):
    """A step is compiled with what is frozen in it; projections of another adapter must reach it."""
    used, fresh = build(vera("q", "fc2")), build(vera("q", "fc2"))
    used.model.logits(batch[0])
    used.loss_and_gradients(*batch)
    float(used.train_step(*batch, 0.0))
    start = away(fresh.model.adapter())
    used.model.load_adapter(start)
    fresh.model.load_adapter(start)
    np.testing.assert_array_equal(used.model.logits(batch[0]), fresh.model.logits(batch[0]))
    assert float(used.train_step(*batch, 0.0)) == float(fresh.train_step(*batch, 0.0))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("targets", TARGETS[:3])
def test_gradients_are_those_of_finite_differences(build, batch, away, targets):
    trainer = build(vera(*targets))
    start = away(trainer.model.adapter(), 0.2)
    trainer.model.load_adapter(start)
    _, gradients = trainer.loss_and_gradients(*batch)
    assert set(gradients) == {name for name in start if "shared" not in name}
    random, step = np.random.default_rng(2), 3e-2
    for name in [n for n in gradients if n.startswith(("blocks.0", "blocks.2"))]:
        direction = random.standard_normal(start[name].shape).astype(np.float32)
        direction /= np.linalg.norm(direction)
        losses = []
        for sign in (1, -1):
            trainer.model.load_adapter(start | {name: start[name] + sign * step * direction})
            losses.append(trainer.loss_and_gradients(*batch)[0])
        # Central difference: an error of step^2 = 1e-3 relative, and 1e-7 / step of rounding in the loss.
        slope = float((gradients[name] * direction).sum())
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(slope, rel=2e-2, abs=1e-4)


@pytest.mark.parametrize("targets", TARGETS[:3])
def test_the_path_of_dropout_is_the_same_function(build, batch, away, targets):
    """Gradients are taken outside of randomness: nothing is dropped, but the product with W is not formed."""
    formed, plain = build(vera(*targets)), build(vera(*targets, dropout=0.5))
    start = away(formed.model.adapter())
    results = []
    for trainer in (formed, plain):
        trainer.model.load_adapter(start)
        results.append(trainer.loss_and_gradients(*batch))
    assert results[0][0] == pytest.approx(results[1][0], rel=ROUNDING)
    for name, gradient in results[0][1].items():
        assert relative(gradient, results[1][1][name]) <= BACKWARD, name


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_gives_the_same_steps(build, batch, away, dropout):
    method = vera("q", "v", "fc1", dropout=dropout)
    sgd = {"optimizer": {"name": "sgd", "momentum": 0.0}}
    plain, recomputed = build(method, train=sgd), build(method, train=sgd | {"gradient_checkpointing": True})
    start = away(plain.model.adapter())
    ends = []
    for trainer in (plain, recomputed):
        trainer.model.load_adapter(start)
        float(trainer.train_step(*batch, 1.0))
        ends.append(trainer.model.adapter())
    for name in [n for n in start if "shared" not in n]:
        step = ends[0][name] - start[name]
        assert np.linalg.norm(step) > 0
        # The step is read off parameters of size 0.1: their last digit is 1e-8.
        np.testing.assert_allclose(ends[1][name] - start[name], step, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 5e-2), ("float16", 1e-2)])
def test_half_precision_follows_float32(build, batch, away, precision, tolerance):
    """Relative errors of whole-ViT logits as expected of 8 and 11 bits of mantissa; the adapter stays float32."""
    exact, half = build(vera("q", "v", "fc2")), build(vera("q", "v", "fc2"), train={"precision": precision})
    start = away(exact.model.adapter())
    for trainer in (exact, half):
        trainer.model.load_adapter(start)
    assert 0 < relative(half.model.logits(batch[0]), exact.model.logits(batch[0])) <= tolerance
    for name, tensor in half.model.adapter().items():
        np.testing.assert_array_equal(tensor, start[name])


def test_restricted_to_some_blocks_it_leaves_the_others_alone(build):
    trainer = build(vera("q", "fc1", blocks=[0, -1]))
    assert {name.split(".")[1] for name in trainer.model.adapter() if name.startswith("blocks.")} == {"0", "2"}
    assert trainer.model.parameters.adapter == 2 * (RANK + WIDTH + RANK + HIDDEN)


def test_every_linear_layer_of_a_swiglu_shares(build, batch, away):
    args = {"patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3, "mlp_layer": "swiglu", "act_layer": "silu"}
    trainer = build(vera("q", "fc1", "fc2"), model={"args": args})
    trainer.model.load_adapter(away(trainer.model.adapter()))
    full = build({"name": "full"}, model={"args": args})
    full.model.load_adapter(trainer.model.merged())
    assert relative(full.model.logits(batch[0]), trainer.model.logits(batch[0])) <= 1e-5
    assert {name.split(".")[3] for name in trainer.model.adapter() if "lambda_d" in name} == {
        "qkv",
        "fc1_g",
        "fc1_x",
        "fc2",
    }


def test_its_default_is_the_papers():
    assert (VeRA().targets, VeRA().rank, VeRA().d_initial) == (("q", "v"), 256, 0.1)
