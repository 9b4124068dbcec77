"""The exact way: a model with the combined adapter is one whose weights are the weighted sum of all updates."""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
from banks import ARGS, CODES, INSIDE, SIDES, SIZE, adapter, base_of, pixels
from hypothesis import given, settings
from hypothesis import strategies as st

from convert.adapters.peft import read_adapter
from mlx_peft.adaptation.adapter import adapter_shapes
from mlx_peft.adaptation.combining import FAMILIES, Part, combine, exact
from mlx_peft.config.combination import Combination
from mlx_peft.config.methods import (
    IA3,
    SSF,
    AdaLoRA,
    AdapterPlus,
    AdaptFormer,
    BitFit,
    Convpass,
    FacT,
    Full,
    Houlsby,
    LayerNorm,
    Linear,
    LoHa,
    LoKr,
    LoRA,
    Method,
    MiSS,
    PVeRA,
    QALoRA,
    RandLoRA,
    RepAdapter,
    VeRA,
)

SUMS = 2e-5
"""Relative to the largest logit: the same sums in another order, of weights that were rounded once more."""

WEIGHTS = (0.8, -0.5, 1.5)

MERGED = {
    "lora with rslora": [LoRA(rank=4, rslora=True, alpha=3), LoRA(rank=8, targets=("qkv", "fc1"))],
    "lora of parts and pissa": [LoRA(rank=3, targets=("q", "v")), LoRA(rank=4, init="pissa", targets=("k", "proj"))],
    "lora of ranks by layer": [LoRA(rank=4, rank_pattern={"qkv": 8}, alpha_pattern={"proj": 5}), LoRA(rank=2)],
    "lora in other blocks": [LoRA(rank=4, blocks=(0,)), LoRA(rank=4, targets=("fc2",), blocks=(1,))],
    "all that is of low rank": [AdaLoRA(init_rank=3, target_rank=2, targets=("q", "proj")), VeRA(rank=4), FacT(rank=3)],
    "other products": [LoHa(rank=2, targets=("q", "fc1")), LoKr(rank=2), MiSS(rank=24, targets=("v", "proj"))],
    "random products": [RandLoRA(rank=16, alpha=2), PVeRA(rank=4, targets=("k", "fc1"))],
    "ia3": [IA3(), IA3(targets=("q", "proj", "fc2")), IA3(targets=("qkv",), blocks=(1,))],
    "ssf": [SSF(), SSF(blocks=(1,))],
    "repadapter": [RepAdapter(bottleneck=4), RepAdapter(bottleneck=3, groups=1, scale=0.5, blocks=(1,))],
    "bitfit": [BitFit(), BitFit(blocks=(0,))],
    "layernorm": [LayerNorm(), LayerNorm(blocks=(1,))],
    "full": [Full(), Full(blocks=(0,))],
    "linear probes beside lora": [Linear(), LoRA(rank=4), Linear()],
    "linear probes alone": [Linear(), Linear()],
}
OVER_CODES = {
    "qalora": [QALoRA(rank=3, targets=("all-linear",)), QALoRA(rank=5, pool="avg", targets=("k", "proj"))],
    "lora over codes": [LoRA(rank=3), LoRA(rank=2, targets=("q",))],
}
CASES = [(name, None, several) for name, several in MERGED.items()] + [
    (name, CODES, several) for name, several in OVER_CODES.items()
]


def model_of(side, quantize):
    return SIDES[side].create_model(
        "vit_tiny_patch16_224", weights="none", num_classes=5, image_size=SIZE, args=ARGS, quantize=quantize
    )


def merged(side, quantize, folder) -> dict[str, np.ndarray]:
    """A model's weights as plain ones, with an adapter, if there is one, merged into them by the method itself."""
    model = model_of(side, quantize)
    if folder is None:
        SIDES[side].add_adapter(model, "linear")
    else:
        SIDES[side].load_adapter(model, folder)
    SIDES[side].merge(model, dequantize=quantize is not None)
    return dict(SIDES[side].state_dict(model))


def dense(side, weights: dict[str, np.ndarray]):
    """A plain model with weights."""
    model = model_of(side, None)
    SIDES[side].add_adapter(model, "full")  # of which every tensor can be set
    INSIDE[side][1].load_adapter(model, weights)
    model.eval()
    return model


@pytest.mark.one_in(2)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("quantize", "methods"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_logits_are_those_of_the_summed_updates(side, quantize, methods, written, tmp_path):
    base = base_of(quantize)
    places = [written(str(i), method, i, base) for i, method in enumerate(methods)]
    out = tmp_path / "out"
    given_weights = dict(zip(places, WEIGHTS, strict=False))
    made = SIDES[side].combine(given_weights, out, head="0", base_weights=None).adapter

    plain = merged(side, quantize, None)
    expected = {name: tensor.astype(np.float64) for name, tensor in plain.items()}
    for place, weight in given_weights.items():
        for name, tensor in merged(side, quantize, place).items():
            if not name.startswith("head"):
                expected[name] = expected[name] + weight * (tensor.astype(np.float64) - plain[name])
    head = {name: read_adapter(places[0]).tensors[name] for name in ("head.weight", "head.bias")}
    summed = dense(side, {name: tensor.astype(np.float32) for name, tensor in (expected | head).items()})

    model = model_of(side, quantize)
    SIDES[side].load_adapter(model, out)
    images = pixels(3)
    logits = summed.logits(images)
    np.testing.assert_allclose(model.logits(images), logits, rtol=0, atol=SUMS * np.abs(logits).max())
    assert (np.abs(logits - dense(side, dict(plain) | head).logits(images)) > 1e-3).any() or all(
        isinstance(method, Linear) for method in methods
    )
    assert made.base_sha256 == base.sha256 and made.quantize == quantize


def test_every_family_has_a_case():
    tried = {type(method) for several in (MERGED | OVER_CODES).values() for method in several}
    beside = {type(several[0]) for several in BOTTLENECKS.values()}  # below: nothing is merged with an activation
    assert tried | beside == FAMILIES.keys() | {Linear}


BOTTLENECKS = {
    "adaptformer": [AdaptFormer(bottleneck=6), AdaptFormer(bottleneck=3, scale=0.5, blocks=(1,))],
    "adapter_plus": [AdapterPlus(bottleneck=6), AdapterPlus(bottleneck=3, blocks=(1,))],
    "houlsby": [Houlsby(bottleneck=6, norms=False), Houlsby(bottleneck=3, blocks=(1,))],
    "convpass": [Convpass(bottleneck=6, conv="xavier"), Convpass(bottleneck=3, scale=0.5, blocks=(1,))],
}


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("kind", BOTTLENECKS)
def test_bottlenecks_side_by_side_are_their_sum(kind, negative):
    base, methods = base_of(), BOTTLENECKS[kind]
    weights = [0.7, -0.4 if negative else 0.4]
    parts = [Part(str(i), m, adapter(base, m, i).tensors, weights[i]) for i, m in enumerate(methods)]
    method, found = combine(parts, Combination(how="cat"), base.architecture, None, lambda: base.tensors)
    assert (method.bottleneck, method.blocks) == (9, None)
    assert found.keys() == adapter_shapes(method, base.architecture, 5).keys() - {"head.weight", "head.bias"}
    x = np.random.default_rng(0).standard_normal((10, base.architecture.embed_dim))
    for path in method.paths(base.architecture):
        own = [part for part in parts if path in part.method.paths(base.architecture)]
        expected = sum(part.weight * bottleneck(part.method, part.tensors, path, x) for part in own)
        np.testing.assert_allclose(bottleneck(method, found, path, x), expected, atol=1e-6)
    for name in method.selected(base.architecture):
        expected = base.tensors[name] + sum(
            part.weight * (part.tensors[name] - base.tensors[name]) for part in parts if name in part.tensors
        )
        np.testing.assert_allclose(found[name], expected, atol=1e-6)


def bottleneck(method, tensors, path, x):
    """Chen et al. 2022, equation 2, without the norm before it; with a factor for each channel, Steitz and Roth's.

    Where there is a convolution, the rows of x are neighbours in a ring.
    """
    name = f"{path}.adapter"
    scale = tensors.get(f"{name}_scale", method.scale if method.name in ("adaptformer", "convpass") else 1.0)
    hidden = np.maximum(x @ tensors[f"{name}_down.weight"].T + tensors[f"{name}_down.bias"], 0)
    if f"{name}_conv.weight" in tensors:
        taps = tensors[f"{name}_conv.weight"].reshape(*hidden.shape[1:] * 2, 9)
        summed = sum(np.roll(hidden, tap, axis=0) @ taps[..., tap].T for tap in range(9))
        hidden = np.maximum(summed + tensors[f"{name}_conv.bias"], 0)
    return scale * (hidden @ tensors[f"{name}_up.weight"].T + tensors[f"{name}_up.bias"])


PRODUCTS = 1e-5
"""Of products of float32 factors, over the largest."""

LAYERS = st.sampled_from([("qkv", "proj"), ("q", "v"), ("fc1",), ("all-linear",)])
LORAS = st.builds(
    lambda rank, alpha, rslora, targets, init: LoRA(rank=rank, alpha=alpha, rslora=rslora, targets=targets, init=init),
    st.integers(1, 8),
    st.floats(0.5, 32),
    st.booleans(),
    LAYERS,
    st.sampled_from(["kaiming", "pissa", "olora"]),
)


@given(st.lists(st.tuples(LORAS, st.floats(-2, 2)), min_size=1, max_size=3))
@settings(max_examples=25)
def test_cat_and_svd_of_full_rank_are_the_sum_of_the_updates(several):
    base = base_of()
    parts = [Part(str(i), m, adapter(base, m, i).tensors, weight) for i, (m, weight) in enumerate(several)]
    assert exact(parts) == "cat"
    results = [
        combine(parts, Combination(how=how, rank=rank), base.architecture, None, lambda: base.tensors)
        for how, rank in (("cat", None), ("svd", 64))
    ]
    expected = {}
    for part in parts:
        for path, update in updates(part.method, part.tensors, base.architecture).items():
            expected[path] = expected.get(path, 0) + part.weight * update
    scale = max(np.abs(update).max() for update in expected.values()) + 1e-6
    for method, found in results:
        assert method.scaling == 1
        for path, update in expected.items():
            made = found[f"{path}.lora_B"].astype(np.float64) @ found[f"{path}.lora_A"]
            np.testing.assert_allclose(made, update, rtol=0, atol=PRODUCTS * scale)


def updates(method, tensors, architecture) -> dict[str, np.ndarray]:
    """s B A of each layer, of PiSSA less the initial one, straight from the tensors."""
    found = {}
    for site in method.sites(architecture):
        found[site.path] = np.zeros((site.outputs, site.inputs))
        for i, rows in enumerate(site.rows):
            for A, B, sign in (("lora_A", "lora_B", 1), ("pissa_A", "pissa_B", -1), ("olora_A", "olora_B", -1)):
                if f"{site.path}.{A}" in tensors:
                    one, other = (
                        np.split(tensors[f"{site.path}.{name}"].astype(np.float64), site.count)[i] for name in (A, B)
                    )
                    found[site.path][rows] += sign * method.scaling_of(site.path) * other @ one
    return found


def test_a_smaller_rank_is_the_nearest_of_that_rank():
    """Eckart and Young: what svd leaves out is what the next singular values hold."""
    base, method = base_of(), LoRA(rank=8, targets=("proj",))
    parts = [Part(str(i), method, adapter(base, method, i).tensors, 1.0) for i in range(2)]
    whole = (
        updates(method, parts[0].tensors, base.architecture)["blocks.0.attn.proj"]
        + (updates(method, parts[1].tensors, base.architecture)["blocks.0.attn.proj"])
    )
    values = np.linalg.svd(whole, compute_uv=False)
    errors = []
    for rank in (1, 4, 12, 16):
        _, found = combine(parts, Combination(how="svd", rank=rank), base.architecture, None, lambda: base.tensors)
        made = found["blocks.0.attn.proj.lora_B"] @ found["blocks.0.attn.proj.lora_A"]
        errors.append(np.linalg.norm(whole - made))
        assert errors[-1] == pytest.approx(np.linalg.norm(values[rank:]), abs=1e-5 * values[0])
    assert all(one > other for one, other in pairwise(errors))


def test_every_method_is_in_a_family_or_says_why_it_is_in_none():
    kinds = get_args(get_args(Method)[0])
    assert {kind for kind in kinds if kind.uncombined is None} == FAMILIES.keys() | {Linear}
