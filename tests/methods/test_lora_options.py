"""LoRA's options: DoRA, PiSSA, LoRA+, ranks by pattern, blocks; against their equations in NumPy."""

import numpy as np
import pytest
from comparing import relative

from mlx_peft.adaptation.factors import principal
from mlx_peft.config.methods import LoRA
from mlx_peft.core.errors import UserError

ROUNDING = 2e-6
"""Relative, float32: two orders of the same few sums."""

LOGITS = 1e-5
"""Relative, float32: the same through a whole ViT."""

WIDTH, HIDDEN, DEPTH = 48, 192, 3
EVERY = ["qkv", "proj", "fc1", "fc2"]
DORA = {"name": "lora", "rank": 4, "dora": True, "targets": EVERY}
PISSA = {"name": "lora", "rank": 4, "init": "pissa", "targets": EVERY}
BOTH = {"name": "lora", "rank": 3, "init": "pissa", "dora": True, "rslora": True, "targets": ["q", "v", "fc1"]}
OLORA = {"name": "lora", "rank": 4, "init": "olora", "targets": ["k", "proj", "fc2"]}
ORTHOGONAL = {"name": "lora", "rank": 4, "init": "orthogonal", "targets": ["q", "v", "fc2"]}
LINEAR = {"name": "linear"}
IDS = ["dora", "pissa", "both", "olora", "orthogonal"]


def trained_alone(tensors, away):
    """Moved where it is trained; what is kept stays."""
    return {name: tensors[name] if name.endswith(LoRA.kept) else t for name, t in away(tensors).items()}


def magnitudes_of(V, m):
    return V * (m / np.linalg.norm(V, axis=1))[:, None]


@pytest.mark.parametrize("targets", [["qkv", "fc2"], ["q"], ["k", "v"], ["q", "k", "v"]])
def test_doras_merged_rows_have_its_magnitudes(build, away, targets):
    """m V / |V|, V = W + s B A; the rows of parts that are not adapted stay bit for bit."""
    method = LoRA(rank=4, alpha=6, dora=True, targets=targets)
    trainer = build(method.model_dump())
    trainer.model.load_adapter(trained_alone(trainer.model.adapter(), away))
    base, merged, tensors = build(LINEAR).model.merged(), trainer.model.merged(), trainer.model.adapter()
    for block in range(DEPTH):
        path = f"blocks.{block}.attn.qkv"
        W, A, B = base[f"{path}.weight"], tensors[f"{path}.lora_A"], tensors[f"{path}.lora_B"]
        m, found = tensors[f"{path}.lora_magnitude_vector"], merged[f"{path}.weight"]
        np.testing.assert_array_equal(merged[f"{path}.bias"], base[f"{path}.bias"])
        if "qkv" in targets:
            assert relative(found, magnitudes_of(W + 1.5 * B @ A, m)) <= ROUNDING
            continue
        thirds = [slice(i * WIDTH, (i + 1) * WIDTH) for i in range(3)]
        for part, rows in zip("qkv", thirds, strict=True):
            if part not in targets:
                np.testing.assert_array_equal(found[rows], W[rows])
                continue
            own = thirds[targets.index(part)]
            delta = 1.5 * B[own] @ np.split(A, len(targets))[targets.index(part)]
            assert relative(found[rows], magnitudes_of(W[rows] + delta, m[own])) <= ROUNDING


@pytest.mark.parametrize("targets", [["q"], ["v", "fc1"], ["qkv", "proj"]])
def test_dora_trains_one_magnitude_for_each_adapted_row(build, targets):
    plain, dora = (build({"name": "lora", "rank": 2, "targets": targets, "dora": dora}) for dora in (False, True))
    rows = sum({"q": 48, "v": 48, "qkv": 144, "proj": 48, "fc1": 192}[target] for target in targets)
    assert dora.model.parameters.adapter - plain.model.parameters.adapter == DEPTH * rows


@pytest.mark.parametrize("method", [DORA, PISSA, BOTH, OLORA, ORTHOGONAL], ids=IDS)
def test_it_starts_as_the_bare_model(build, batch, method):
    linear, adapted = build(LINEAR), build(method)
    adapted.model.load_adapter(adapted.model.adapter() | linear.model.adapter())
    assert relative(adapted.model.logits(batch[0]), linear.model.logits(batch[0])) <= LOGITS


@pytest.mark.one_in(2)
@pytest.mark.parametrize("method", [DORA, PISSA, BOTH, OLORA, ORTHOGONAL], ids=IDS)
def test_merging_leaves_the_logits_and_the_model_alone(build, batch, away, method):
    trainer, full = build(method), build({"name": "full"})
    trainer.model.load_adapter(trained_alone(trainer.model.adapter(), away))
    before = trainer.model.logits(batch[0])
    full.model.load_adapter(trainer.model.merged())
    assert relative(full.model.logits(batch[0]), before) <= LOGITS
    np.testing.assert_array_equal(trainer.model.logits(batch[0]), before)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("method", [DORA, PISSA, BOTH, OLORA, DORA | {"targets": ["q", "fc2"]}], ids=str)
def test_dropouts_path_without_a_draw_is_the_formed_products(build, batch, away, method):
    """A rate above 0 takes the other way through the layer; where nothing draws, logits and gradients are the same."""
    formed, apart = build(method), build(method | {"dropout": 0.5})
    start = trained_alone(formed.model.adapter(), away)
    gradients = []
    for trainer in (formed, apart):
        trainer.model.load_adapter(start)
        gradients.append(trainer.loss_and_gradients(*batch)[1])
    for name, gradient in gradients[0].items():
        assert relative(gradients[1][name], gradient) <= 2e-5, name


@pytest.mark.parametrize("method", [PISSA, BOTH], ids=["pissa", "both"])
def test_half_precision_follows_float32(build, batch, away, method):
    exact, half = build(method), build(method, train={"precision": "bfloat16"})
    start = trained_alone(exact.model.adapter(), lambda tensors: away(tensors, 0.01))
    results = []
    for trainer in (exact, half):
        trainer.model.load_adapter(start)
        assert all(tensor.dtype == np.float32 for tensor in trainer.model.adapter().values())
        results.append(trainer.loss_and_gradients(*batch))
    (loss, gradients), (rounded, others) = results
    assert 0 < abs(rounded - loss) <= 5e-2 * loss  # 8 bits of mantissa, through a whole ViT
    # A gradient of near nothing is rounding: all of a kind are held together.
    for kind in {name.rpartition(".")[2] for name in gradients}:
        a, b = (np.concatenate([g[n].ravel() for n in sorted(g) if n.endswith(kind)]) for g in (others, gradients))
        assert relative(a, b) <= 0.1, kind


def test_pissas_initial_factors_stay_and_its_weights_too(build, batch):
    trainer = build(PISSA)
    start, base = trainer.model.adapter(), build(LINEAR).model.merged()
    for _ in range(2):
        float(trainer.train_step(*batch, 1e-2))
    end = trainer.model.adapter()
    for name, tensor in end.items():
        layer, _, kind = name.rpartition(".")
        if kind.startswith("pissa"):
            np.testing.assert_array_equal(tensor, start[name])
            np.testing.assert_array_equal(start[name], start[f"{layer}.{kind.replace('pissa', 'lora')}"])
        elif kind.startswith("lora"):
            assert not np.array_equal(tensor, start[name])
    trainer.model.load_adapter(start)
    merged = trainer.model.merged()
    assert all(relative(merged[name], base[name]) <= ROUNDING for name in base if name.endswith("weight"))
    assert (
        trainer.model.parameters.adapter
        == build({"name": "lora", "rank": 4, "targets": EVERY}).model.parameters.adapter
    )


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (24, 24)])
def test_principal_factors_are_the_leading_singular_triplets(shape):
    W = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    U, S, V = np.linalg.svd(W.astype(np.float64), full_matrices=False)
    A, B = principal(W, 5, 3.0)
    assert relative(3.0 * B.astype(np.float64) @ A, (U[:, :5] * S[:5]) @ V[:5]) <= ROUNDING
    # Split evenly: rows of A and columns of B have the norm sqrt(S / s), and are orthogonal.
    np.testing.assert_allclose(A @ A.T, np.diag(S[:5] / 3), atol=1e-5)
    np.testing.assert_allclose(B.T @ B, np.diag(S[:5] / 3), atol=1e-5)
    assert (A[np.arange(5), np.abs(A).argmax(axis=1)] > 0).all()


def test_principal_factors_of_a_weight_of_lower_rank_are_finite():
    u, v = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
    A, B = principal(np.outer(u, v), 3, 1.0)
    assert relative(B @ A, np.outer(u, v)) <= ROUNDING
    assert not any(factor.any() for factor in principal(np.zeros((8, 4), np.float32), 2, 1.0))


def test_each_parts_principal_factors_are_its_own(build):
    tensors, base = (
        build({"name": "lora", "rank": 2, "init": "pissa", "targets": ["k", "v"]}).model.adapter(),
        build(LINEAR),
    )
    W = base.model.merged()["blocks.1.attn.qkv.weight"]
    (A, other), (B, second) = (np.split(tensors[f"blocks.1.attn.qkv.lora_{kind}"], 2) for kind in "AB")
    for factors, rows in (((A, B), W[WIDTH : 2 * WIDTH]), ((other, second), W[2 * WIDTH :])):
        for found, expected in zip(factors, principal(rows, 2, 8.0), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_lora_plus_moves_B_further_by_its_ratio(build, batch, away):
    sgd = {"optimizer": {"name": "sgd", "momentum": 0.0, "weight_decay": 0.0}, "clip_norm": None}
    trainer = build({"name": "lora", "rank": 2, "lora_plus": 16, "targets": ["q"], "blocks": [2]}, train=sgd)
    start = trained_alone(trainer.model.adapter(), away)
    trainer.model.load_adapter(start)
    gradients = trainer.loss_and_gradients(*batch)[1]
    float(trainer.train_step(*batch, 0.1))
    end = trainer.model.adapter()
    for name, gradient in gradients.items():
        ratio = 16 if name.endswith("lora_B") else 1
        # The difference of two weights of about 0.1 is known to 1e-8, and the steps are of 1e-4 and more.
        np.testing.assert_allclose(end[name], start[name] - 0.1 * ratio * gradient, atol=2e-7, err_msg=name)
        assert np.abs(gradient).max() > 1e-4, name


def test_ranks_and_alphas_go_by_pattern(build, away):
    method = LoRA(
        rank=4, alpha=8, targets=("q", "v", "proj", "fc2"), blocks=(0, 2),
        rank_pattern={r"blocks\.2\.attn\.qkv": 6, "qkv": 2, "fc2": 5}, alpha_pattern={r"2\.mlp\.fc2": 3, "proj": 2},
    )  # fmt: skip
    trainer = build(method.model_dump())
    trainer.model.load_adapter(away(trainer.model.adapter()))
    tensors, base, merged = trainer.model.adapter(), build(LINEAR).model.merged(), trainer.model.merged()
    ranks = {"blocks.0.attn.qkv": 2, "blocks.2.attn.qkv": 6, "blocks.0.attn.proj": 4, "blocks.2.attn.proj": 4}
    ranks |= {"blocks.0.mlp.fc2": 5, "blocks.2.mlp.fc2": 5}
    scalings = {"blocks.0.attn.proj": 2 / 4, "blocks.2.attn.proj": 2 / 4, "blocks.0.mlp.fc2": 8 / 5}
    scalings |= {"blocks.2.mlp.fc2": 3 / 5}
    assert {name.rpartition(".")[0] for name in tensors} == {*ranks, "head"}
    for path, rank in ranks.items():
        A, B = tensors[f"{path}.lora_A"], tensors[f"{path}.lora_B"]
        assert len(A) == rank * (2 if "qkv" in path else 1) and B.shape[1] == rank
        if "qkv" in path:
            upper = merged[f"{path}.weight"][:WIDTH] - base[f"{path}.weight"][:WIDTH]
            assert relative(upper, 8 / rank * B[:WIDTH] @ A[:rank]) <= 2e-5  # a difference: absolute rounding of W
        else:
            expected = base[f"{path}.weight"] + scalings[path] * B @ A
            assert relative(merged[f"{path}.weight"], expected) <= ROUNDING
    np.testing.assert_array_equal(merged["blocks.1.attn.qkv.weight"], base["blocks.1.attn.qkv.weight"])


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({"targets": "attention", "blocks": "last 1"}, {"2.attn.qkv", "2.attn.proj"}),
        ({"targets": ["mlp"], "blocks": [0]}, {"0.mlp.fc1", "0.mlp.fc2"}),
        ({"targets": ["k", "mlp"], "blocks": "1-1"}, {"1.attn.qkv", "1.mlp.fc1", "1.mlp.fc2"}),
        ({"targets": "all-linear", "blocks": "first 1"}, {"0.attn.qkv", "0.attn.proj", "0.mlp.fc1", "0.mlp.fc2"}),
    ],
)
def test_groups_of_targets_and_blocks_take_one_line(build, options, layers):
    tensors = build({"name": "lora", "rank": 2, **options}).model.adapter()
    assert {name.rpartition(".")[0] for name in tensors} == {f"blocks.{layer}" for layer in layers} | {"head"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank_pattern": {"fc3": 2}}, "'fc3' matches no adapted layer"),
        ({"alpha_pattern": {"fc1": 2}, "targets": ["qkv"]}, "'fc1' matches no adapted layer"),
        ({"rank_pattern": {"qkv": 49}}, r"rank 49 is above the width of blocks\.0\.attn\.qkv"),
        ({"rank": 49, "targets": ["q"]}, "rank 49 is above the width"),
    ],
)
def test_what_cannot_be_is_refused_before_training(build, options, message):
    method = LoRA.model_validate({"rank": 2, "targets": ["qkv"], **options})
    architecture = build({"name": "linear"}).model.base.architecture
    with pytest.raises(UserError, match=message):
        method.check(architecture)
        method.check_new(architecture)
