"""LoRA against its equation in NumPy; counts against the closed formula; merging."""

import numpy as np
import pytest
from comparing import relative

from mlx_peft.config.methods import LoRA
from mlx_peft.vit.registry import find

ROUNDING = 2e-6
"""Relative, float32: two orders of the same few sums."""

WIDTH, HIDDEN, DEPTH, CLASSES = 48, 192, 3, 5
INPUT = {"qkv": WIDTH, "proj": WIDTH, "fc1": WIDTH, "fc2": HIDDEN}
OUTPUT = {"qkv": 3 * WIDTH, "proj": WIDTH, "fc1": HIDDEN, "fc2": WIDTH}
PATHS = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}


def layers_of(method: LoRA) -> dict[str, tuple[str, ...]]:
    """The adapted layers by name, each with the parts that are adapted (``()``: all of it)."""
    parts = tuple(part for part in "qkv" if part in method.targets)
    return ({"qkv": parts} if parts else {}) | {name: () for name in PATHS if name in method.targets}


def expected_delta(tensors, path, method: LoRA, rows: int) -> np.ndarray:
    """s B A by the equation; parts go to their third of the rows."""
    A, B = tensors[f"{path}.lora_A"].astype(np.float64), tensors[f"{path}.lora_B"].astype(np.float64)
    parts = layers_of(method)[path.rpartition(".")[2]]
    if not parts:
        return method.scaling * B @ A
    delta, r, d = np.zeros((rows, A.shape[1])), method.rank, rows // 3
    for i, part in enumerate(parts):
        row = "qkv".index(part) * d
        delta[row : row + d] = method.scaling * B[i * d : (i + 1) * d] @ A[i * r : (i + 1) * r]
    return delta


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("targets", [("qkv", "proj", "fc1", "fc2"), ("q", "v"), ("k", "fc2"), ("q", "k", "v")])
def test_merged_weights_are_the_equations(build, away, targets, rslora):
    method = LoRA(rank=4, alpha=6.0, targets=targets, rslora=rslora)
    trainer = build(method.model_dump())
    trainer.model.load_adapter(away(trainer.model.adapter()))
    base, merged, tensors = build({"name": "linear"}).model.merged(), trainer.model.merged(), trainer.model.adapter()
    for block in range(DEPTH):
        for name, path in PATHS.items():
            weight = base[f"blocks.{block}.{path}.weight"]
            if name in layers_of(method):
                weight = weight + expected_delta(tensors, f"blocks.{block}.{path}", method, OUTPUT[name])
            assert relative(merged[f"blocks.{block}.{path}.weight"], weight) <= ROUNDING
            np.testing.assert_array_equal(merged[f"blocks.{block}.{path}.bias"], base[f"blocks.{block}.{path}.bias"])


@pytest.mark.parametrize("targets", [("qkv", "proj", "fc1", "fc2"), ("q", "v")])
def test_merging_leaves_the_logits_and_the_model_alone(build, batch, away, targets):
    trainer = build({"name": "lora", "rank": 4, "targets": targets})
    trainer.model.load_adapter(away(trainer.model.adapter()))
    before = trainer.model.logits(batch[0])
    plain = build({"name": "linear"})
    merged = trainer.model.merged()
    np.testing.assert_array_equal(trainer.model.logits(batch[0]), before)
    plain.model.load_adapter({name: merged[name] for name in plain.model.adapter()})
    assert relative(plain.model.logits(batch[0]), before) > 1e-3, (
        "the adapter must matter for this test to say anything"
    )
    full = build({"name": "full"})
    full.model.load_adapter(merged)
    assert relative(full.model.logits(batch[0]), before) <= 1e-5


@pytest.mark.parametrize("targets", [("qkv", "proj", "fc1", "fc2"), ("qkv",), ("q", "v"), ("fc1",)])
def test_trained_parameters_are_the_closed_formulas(build, targets):
    method = LoRA(rank=4, targets=targets)
    trainer = build(method.model_dump())
    per_block = 0
    for name, parts in layers_of(method).items():
        per_block += 4 * (INPUT[name] + OUTPUT[name]) if not parts else len(parts) * 4 * (WIDTH + WIDTH)
    assert trainer.model.parameters.adapter == DEPTH * per_block
    assert trainer.model.parameters.head == CLASSES * (WIDTH + 1)
    assert trainer.model.parameters.adapter + trainer.model.parameters.head == sum(
        t.size for t in trainer.model.adapter().values()
    )


def test_published_count_of_lora_on_queries_and_values():
    """294,912 on ViT-B without the head: rank 8 on q and v (V-PETL Bench)."""
    method, per_part = LoRA(rank=8, targets=("q", "v")), 8 * (768 + 768)
    sites = method.sites(find("vit_base_patch16_224").architecture)
    assert sum(len(site.parts) * per_part for site in sites) == 294_912
    assert sum(method.rank_of(site.path) * (len(site.parts) * site.inputs + site.adapted) for site in sites) == 294_912


def test_it_starts_as_the_bare_model(build, batch):
    linear, lora = build({"name": "linear"}), build({"name": "lora"})
    lora.model.load_adapter(lora.model.adapter() | linear.model.adapter())
    assert relative(lora.model.logits(batch[0]), linear.model.logits(batch[0])) <= ROUNDING


def test_initial_A_is_uniform_within_its_bound_and_differs_by_layer(build):
    tensors = build({"name": "lora", "rank": 16}).model.adapter()
    A = tensors["blocks.0.attn.qkv.lora_A"]
    bound = 1 / np.sqrt(WIDTH)
    assert np.abs(A).max() <= bound
    # A uniform's standard deviation is bound / sqrt 3; 768 draws give it to within 4 standard errors of 2.3 per cent.
    assert A.std() == pytest.approx(bound / np.sqrt(3), rel=0.1)
    assert not np.array_equal(A, tensors["blocks.1.attn.qkv.lora_A"])
    assert not tensors["blocks.0.attn.qkv.lora_B"].any()


def test_gradients_are_those_of_finite_differences(build, batch, away):
    trainer = build({"name": "lora", "rank": 2, "targets": ["q", "v", "fc2"]})
    start = away(trainer.model.adapter())
    trainer.model.load_adapter(start)
    _, gradients = trainer.loss_and_gradients(*batch)
    random, step = np.random.default_rng(2), 1e-2
    for name in ("blocks.0.attn.qkv.lora_A", "blocks.2.attn.qkv.lora_B", "blocks.1.mlp.fc2.lora_B", "head.weight"):
        direction = random.standard_normal(start[name].shape).astype(np.float32)
        direction /= np.linalg.norm(direction)
        losses = []
        for sign in (1, -1):
            trainer.model.load_adapter(start | {name: start[name] + sign * step * direction})
            losses.append(trainer.loss_and_gradients(*batch)[0])
        # Central difference: an error of step^2 = 1e-4 relative, and 1e-7 / step = 1e-5 of rounding in the loss.
        slope = float((gradients[name] * direction).sum())
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(slope, rel=2e-2, abs=2e-4)


def test_frozen_weights_do_not_move(build, batch):
    trainer = build({"name": "lora", "targets": ["qkv"]}, train={"optimizer": {"name": "adamw", "weight_decay": 0.5}})
    for _ in range(3):
        float(trainer.train_step(*batch, 1e-2))
    merged = trainer.model.merged()
    changed = {n for n, t in build({"name": "linear"}).model.merged().items() if not np.array_equal(merged[n], t)}
    assert changed == {"head.weight", "head.bias"} | {f"blocks.{i}.attn.qkv.weight" for i in range(DEPTH)}


def test_swiglu_has_both_its_first_layers_adapted(build):
    args = {"patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3, "mlp_layer": "swiglu", "act_layer": "silu"}
    trainer = build({"name": "lora", "targets": ["fc1"]}, model={"args": args})
    assert {name.rpartition(".")[0] for name in trainer.model.adapter()} == {
        "blocks.0.mlp.fc1_g", "blocks.0.mlp.fc1_x", "head",
    }  # fmt: skip
