"""Adapter+ and Houlsby's adapter against their papers' equations, in NumPy; counts against formula and papers."""

import numpy as np
import papers
import pytest
from comparing import LOGITS, relative

from mlx_peft.adaptation import footprint
from mlx_peft.adaptation.adapter import adapter_shapes
from mlx_peft.config.methods import AdapterPlus, Houlsby
from mlx_peft.vit.parameters import is_head
from mlx_peft.vit.registry import find

ROUNDING = 2e-5
"""Relative, float32: the same sums in another order, through a backward pass."""

METHODS = {
    "adapter_plus": {"name": "adapter_plus", "bottleneck": 6},
    "houlsby": {"name": "houlsby", "bottleneck": 6},
}
DROPPED = {"adapter_plus": "drop_path", "houlsby": "dropout"}
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


BLOCKS = {"adapter_plus": adapter_plus, "houlsby": houlsby}


def pixels(trainer, images):
    preprocessing = trainer.model.base.preprocessing
    return (images / 255 - np.array(preprocessing.mean)) / np.array(preprocessing.std)


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


@pytest.mark.parametrize("name", METHODS)
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


@pytest.mark.parametrize(
    ("method", "formula"),
    [
        (AdapterPlus(bottleneck=5), lambda d, b, depth: depth * (2 * d * b + b + 2 * d)),
        (Houlsby(bottleneck=5, norms=False), lambda d, b, depth: 2 * depth * (2 * d * b + b + d)),
        (Houlsby(bottleneck=5), lambda d, b, depth: 2 * depth * (2 * d * b + b + d) + (2 * depth + 1) * 2 * d),
    ],
    ids=["adapter+", "houlsby without norms", "houlsby"],
)
def test_trained_parameters_are_the_closed_formula(build, method, formula):
    trainer = build(method.model_dump())
    assert trainer.model.parameters.adapter == formula(48, 5, 3)
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


@pytest.mark.parametrize("method", [AdapterPlus(bottleneck=6), Houlsby(bottleneck=6)], ids=lambda method: method.name)
def test_an_adapter_comes_back_bit_for_bit_and_is_the_same_model(build, batch, away, saved, method):
    trainer = build(method.model_dump())
    trainer.model.load_adapter(away(trainer.model.adapter()))
    notes, again = saved(trainer)
    assert len(notes) == 1 and f"Hugging Face PEFT has no method '{method.name}'" in notes[0]
    assert again.method == method
    other = build(again.method.model_dump())
    other.model.load_adapter(again.tensors)
    np.testing.assert_array_equal(other.model.logits(batch[0]), trainer.model.logits(batch[0]))
