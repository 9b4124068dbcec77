"""Adapter+, Houlsby's adapter, RepAdapter and Convpass against the papers' equations in NumPy, and their counts."""

import numpy as np
import papers
import pytest
from comparing import LOGITS, relative

from mlx_peft.adaptation import footprint
from mlx_peft.adaptation.adapter import adapter_shapes
from mlx_peft.config.methods import AdapterPlus, Convpass, Houlsby, RepAdapter
from mlx_peft.core.errors import UserError
from mlx_peft.vit.parameters import is_head
from mlx_peft.vit.registry import find

ROUNDING = 2e-5
"""Relative, float32: the same sums in another order, through a backward pass."""

METHODS = {
    "adapter_plus": {"name": "adapter_plus", "bottleneck": 6},
    "houlsby": {"name": "houlsby", "bottleneck": 6},
    "repadapter": {"name": "repadapter", "bottleneck": 6, "groups": 3, "scale": 0.7, "dropout": 0.0},
    "convpass": {"name": "convpass", "bottleneck": 6, "scale": 0.7, "dropout": 0.0},
}
NEAR = ("adapter_plus", "houlsby")
"""They start as Houlsby et al. have it."""

DROPPED = {"adapter_plus": "drop_path", "houlsby": "dropout", "repadapter": "dropout", "convpass": "dropout"}
SMALL = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
MODELS = {
    "plain": {"args": SMALL},
    "layer scale and registers": {"name": "vit_small_patch14_reg4_dinov2", "args": SMALL},
}

VTAB = (100, 102, 47, 102, 37, 10, 397, 2, 10, 45, 5, 8, 6, 6, 4, 16, 16, 18, 9)
"""Classes of VTAB-1k's tasks."""


def inner(of, path, x):
    hidden = papers.gelu(of.linear(f"{path}adapter_down", x))
    return of.linear(f"{path}adapter_up", hidden)


def adapter_plus(number, of, x):
    """Steitz and Roth 2024: the Post-Adapter, with channel-wise scaling."""
    x = papers.plain(number, of, x)
    return x + of["adapter_scale"] * inner(of, "", x)


def houlsby(number, of, x):
    """Houlsby et al. 2019, section 2.1: each adapter with its skip connection inside, before the sum."""
    y = of.attention(of.norm("norm1", x))
    x = x + (y + inner(of, "ls1.", y))
    y = of.mlp(of.norm("norm2", x))
    return x + (y + inner(of, "ls2.", y))


def repadapter(number, of, x):
    """Luo et al. 2023, section 3: three groups, each of which reads a third of the bottleneck."""

    def f(norm, x):
        hidden = of.linear(f"{norm}.adapter_down", x)
        ups = zip(np.split(hidden, 3, axis=-1), np.split(of[f"{norm}.adapter_up.weight"], 3), strict=True)
        return x + 0.7 * (np.concatenate([part @ up.T for part, up in ups], axis=-1) + of[f"{norm}.adapter_up.bias"])

    x = x + of.attention(f("norm1", of.norm("norm1", x)))
    return x + of.mlp(f("norm2", of.norm("norm2", x)))


def bypass(of, at, x):
    """Over a grid of 4 x 4: what stands before the patches are grids of their own."""
    quick_gelu = lambda x: x / (1 + np.exp(-1.702 * x))  # noqa: E731
    hidden, weight = quick_gelu(of.linear(f"{at}.adapter_down", x)), of[f"{at}.adapter_conv.weight"]
    alone, patches = hidden[:, :-16], hidden[:, -16:]
    padded = np.pad(patches.reshape(len(x), 4, 4, -1), ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = ((row, column) for row in range(3) for column in range(3))
    summed = sum(padded[:, i : i + 4, j : j + 4] @ weight[:, :, i, j].T for i, j in shifts)
    hidden = np.concatenate([alone @ weight[:, :, 1, 1].T, summed.reshape(patches.shape)], axis=1)
    return 0.7 * of.linear(f"{at}.adapter_up", quick_gelu(hidden + of[f"{at}.adapter_conv.bias"]))


def convpass(number, of, x):
    """Jie and Deng 2022, section 3.2."""
    normed = of.norm("norm1", x)
    x = x + of.attention(normed) + bypass(of, "bypass_attn", normed)
    normed = of.norm("norm2", x)
    return x + of.mlp(normed) + bypass(of, "bypass_mlp", normed)


BLOCKS = {"adapter_plus": adapter_plus, "houlsby": houlsby, "repadapter": repadapter, "convpass": convpass}


def pixels(trainer, images):
    preprocessing = trainer.model.base.preprocessing
    return (images / 255 - np.array(preprocessing.mean)) / np.array(preprocessing.std)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("blocks", [None, [-1]], ids=["all blocks", "the last block"])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("name", METHODS)
def test_it_is_the_papers_equation(build, batch, away, name, model, blocks):
    weights = away(build({"name": "full"}, model).model.adapter())
    trainer = build(METHODS[name] | {"blocks": blocks}, model, weights=weights)
    tensors = away(trainer.model.adapter(), 0.2)
    trainer.model.load_adapter(tensors)

    def block(number, of, x):
        return (BLOCKS[name] if blocks is None or number == 1 else papers.plain)(number, of, x)

    images = pixels(trainer, batch[0])
    expected = papers.logits(weights | tensors, images, block)
    assert relative(trainer.model.logits(batch[0]), expected) <= LOGITS
    bare = papers.logits(weights | tensors, images, papers.plain)
    assert relative(bare, expected) > 1e-3, "the bottlenecks must matter for this to say anything"


@pytest.mark.parametrize("name", NEAR)
def test_it_starts_near_the_bare_model_as_houlsby_has_it(build, batch, name):
    bare, trainer = build({"name": "linear"}), build(METHODS[name] | {"bottleneck": 32})
    assert 0 < relative(trainer.model.logits(batch[0]), bare.model.logits(batch[0])) < 0.02
    tensors = {n: t for n, t in trainer.model.adapter().items() if "adapter" in n}
    for kind in ("adapter_down.weight", "adapter_up.weight"):
        drawn = np.stack([t for n, t in tensors.items() if n.endswith(kind)])
        # A normal that is cut off at two deviations has 0.8796 of its deviation; 4,608 draws give it to four per cent
        assert np.abs(drawn).max() <= 0.02 and drawn.std() == pytest.approx(0.8796 * 0.01, rel=0.06)
        assert len(np.unique(drawn)) > 0.99 * drawn.size
    assert all(not t.any() for n, t in tensors.items() if n.endswith(".bias"))
    assert all((t == 1).all() for n, t in tensors.items() if n.endswith("scale"))


def test_repadapter_starts_as_the_bare_model_with_xaviers_down(build, batch):
    bare, trainer = build({"name": "linear"}), build({"name": "repadapter", "bottleneck": 32})
    assert relative(trainer.model.logits(batch[0]), bare.model.logits(batch[0])) <= LOGITS
    down, bound = trainer.model.adapter()["blocks.0.norm1.adapter_down.weight"], np.sqrt(6 / (48 + 32))
    # 1,536 draws give the deviation of a uniform to four standard errors of 1.6 per cent
    assert np.abs(down).max() <= bound and down.std() == pytest.approx(bound / np.sqrt(3), rel=0.07)


def test_convpass_reads_what_attention_and_mlp_read_where_the_norms_are_behind_them(build, batch, away):
    model = {"args": SMALL | {"post_norm": True}}
    weights = away(build({"name": "full"}, model).model.adapter())
    trainer = build(METHODS["convpass"], model, weights=weights)
    tensors = away(trainer.model.adapter(), 0.2)
    trainer.model.load_adapter(tensors)

    def block(number, of, x):
        x = x + of.norm("norm1", of.attention(x)) + bypass(of, "bypass_attn", x)
        return x + of.norm("norm2", of.mlp(x)) + bypass(of, "bypass_mlp", x)

    expected = papers.logits(weights | tensors, pixels(trainer, batch[0]), block)
    assert relative(trainer.model.logits(batch[0]), expected) <= LOGITS


@pytest.mark.parametrize("conv", ["identity", "xavier"])
def test_convpass_starts_as_the_bare_model_with_a_convolution_that_is_chosen(build, batch, conv):
    bare, trainer = build({"name": "linear"}), build({"name": "convpass", "bottleneck": 16, "conv": conv})
    assert relative(trainer.model.logits(batch[0]), bare.model.logits(batch[0])) <= LOGITS
    tensors = trainer.model.adapter()
    down, bound = tensors["blocks.0.bypass_attn.adapter_down.weight"], np.sqrt(6 / (48 + 16))
    # 768 draws give the deviation of a uniform to four standard errors of 2.3 per cent, the 2,304 below to 1.3
    assert np.abs(down).max() <= bound and down.std() == pytest.approx(bound / np.sqrt(3), rel=0.1)
    weight, bound = tensors["blocks.1.bypass_mlp.adapter_conv.weight"], np.sqrt(6 / (2 * 9 * 16))
    if conv == "identity":
        x = np.random.default_rng(0).standard_normal((16, 3, 3))
        np.testing.assert_allclose(np.einsum("oikl,ikl->o", weight, x), x[:, 1, 1], rtol=1e-6)
    else:
        assert np.abs(weight).max() <= bound and weight.std() == pytest.approx(bound / np.sqrt(3), rel=0.06)


@pytest.mark.parametrize("mlp", ["mlp", "swiglu"])
def test_repadapter_merges_into_every_layer_that_reads_the_norm(build, batch, away, mlp):
    model = {"args": SMALL | {"mlp_layer": mlp}}
    trainer = build(METHODS["repadapter"], model)
    trainer.model.load_adapter(away(trainer.model.adapter(), 0.2))
    plain = build({"name": "full"}, model)
    plain.model.load_adapter(trainer.model.merged())
    assert relative(plain.model.logits(batch[0]), trainer.model.logits(batch[0])) <= LOGITS


def test_repadapter_refuses_to_merge_where_a_layer_has_no_bias_and_groups_that_do_not_divide(build):
    trainer = build(METHODS["repadapter"], {"args": SMALL | {"qkv_bias": False}})
    with pytest.raises(UserError, match=r"RepAdapter cannot be merged: blocks.0.attn.qkv has no bias"):
        trainer.model.merged()
    with pytest.raises(UserError, match="groups 4 does not divide bottleneck 6"):
        RepAdapter(bottleneck=6, groups=4)
    with pytest.raises(UserError, match=r"method.groups: 5 does not divide the model's width, 48"):
        build({"name": "repadapter", "bottleneck": 10, "groups": 5})
    with pytest.raises(UserError, match="between a norm and what reads it, and this model's blocks normalise after"):
        build(METHODS["repadapter"], {"args": SMALL | {"post_norm": True}})


@pytest.mark.parametrize(
    ("method", "formula"),
    [
        (AdapterPlus(bottleneck=5), lambda d, b, depth: depth * (2 * d * b + b + 2 * d)),
        (Houlsby(bottleneck=5, norms=False), lambda d, b, depth: 2 * depth * (2 * d * b + b + d)),
        (Houlsby(bottleneck=5), lambda d, b, depth: 2 * depth * (2 * d * b + b + d) + (2 * depth + 1) * 2 * d),
        (Convpass(bottleneck=5), lambda d, b, depth: 2 * depth * (2 * d * b + b + d + 9 * b * b + b)),
        (RepAdapter(bottleneck=6, groups=3), lambda d, b, depth: 2 * depth * (d * b + b + d * 2 + d)),
    ],
    ids=["adapter+", "houlsby without norms", "houlsby", "convpass", "repadapter"],
)
def test_trained_parameters_are_the_closed_formula(build, method, formula):
    trainer = build(method.model_dump())
    assert trainer.model.parameters.adapter == formula(48, method.bottleneck, 3)
    found = {n: t.size for n, t in trainer.model.adapter().items() if not is_head(n)}
    assert sum(found.values()) == trainer.model.parameters.adapter


@pytest.mark.parametrize(
    ("method", "millions"),
    [
        *((AdapterPlus(bottleneck=b), m) for b, m in ((1, 0.07), (2, 0.09), (4, 0.13), (8, 0.20), (16, 0.35))),
        *((Houlsby(bottleneck=b), m) for b, m in ((4, 0.24), (8, 0.39))),
    ],
    ids=lambda value: f"{value.name}-{value.bottleneck}" if hasattr(value, "bottleneck") else str(value),
)
def test_on_vit_b_they_are_as_many_as_steitz_and_roth_count(method, millions):
    """Their counts hold the heads of VTAB's tasks, 0.04 million in the mean."""
    counts = [footprint.count(adapter_shapes(method, find("vit_base_patch16_224").architecture, n)) for n in VTAB]
    assert round(np.mean(counts) / 1e6, 2) == millions


def test_on_vit_b_repadapter_has_as_many_as_its_paper_counts_without_biases():
    shapes = adapter_shapes(RepAdapter(), find("vit_base_patch16_224").architecture, 10)
    weights = {name: shape for name, shape in shapes.items() if ".adapter_" in name and name.endswith("weight")}
    assert round(footprint.count(weights) / 1e6, 2) == 0.22


def test_on_vit_b_convpass_has_as_many_as_its_paper_counts():
    architecture = find("vit_base_patch16_224").architecture
    assert footprint.count(Convpass().added(architecture)) == 327_552  # 0.33 million in the paper's table


@pytest.mark.parametrize("name", METHODS)
def test_checkpointing_gives_the_same_gradients_also_where_the_block_scales_its_halves_itself(build, batch, away, name):
    model = {"args": SMALL | {"family": "eva", "init_values": 0.1}}
    plain, recomputed = build(METHODS[name], model), build(METHODS[name], model, {"gradient_checkpointing": True})
    start, gradients = away(plain.model.adapter()), []
    for trainer in (plain, recomputed):
        trainer.model.load_adapter(start)
        gradients.append(trainer.loss_and_gradients(*batch)[1])
    assert all(gradients[0][name].any() for name in start)
    assert max(relative(gradients[1][name], gradients[0][name]) for name in start) <= ROUNDING


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", METHODS)
def test_where_all_is_dropped_in_training_only_the_bias_of_up_is_left_or_nothing(build, batch, away, name):
    """Nothing is left where the whole bottleneck is dropped, as for an image's path."""
    key = DROPPED[name]
    trainer, without = build(METHODS[name] | {key: 1 - 1e-9}), build(METHODS[name] | {key: 0})
    start = away(trainer.model.adapter())
    for one in (trainer, without):
        one.model.load_adapter(start)
    np.testing.assert_array_equal(trainer.model.logits(batch[0]), without.model.logits(batch[0]))
    gone = ("adapter_up.weight", *(["adapter_up.bias"] if key == "drop_path" else []))
    without.model.load_adapter({n: np.zeros_like(t) if n.endswith(gone) else t for n, t in start.items()})
    assert float(trainer.train_step(*batch, 0.0)) == pytest.approx(float(without.train_step(*batch, 0.0)), rel=1e-6)


@pytest.mark.parametrize("kind", [AdapterPlus, Houlsby, RepAdapter, Convpass], ids=lambda kind: kind.__name__)
def test_an_adapter_comes_back_bit_for_bit_and_is_the_same_model(build, batch, away, saved, kind):
    method = kind(bottleneck=6)
    trainer = build(method.model_dump())
    trainer.model.load_adapter(away(trainer.model.adapter()))
    notes, again = saved(trainer)
    assert len(notes) == 1 and f"Hugging Face PEFT has no method '{method.name}'" in notes[0]
    assert again.method == method
    other = build(again.method.model_dump())
    other.model.load_adapter(again.tensors)
    np.testing.assert_array_equal(other.model.logits(batch[0]), trainer.model.logits(batch[0]))
