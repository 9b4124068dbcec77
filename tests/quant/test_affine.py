"""Both backends' affine quantisation against MLX's own, which nobody here wrote, bit for bit."""

import numpy as np
import pytest
import torch
from comparing import relative
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_peft.backend import blas  # noqa: F401  before MLX

# isort: split
import mlx.core as mx

from mlx_peft.backend.models.layers import Linear as MLXLinear
from mlx_peft.backend.quant import affine as ours
from torch_ref.models.layers import Linear
from torch_ref.quant import affine as reference

BITS, GROUPS = (2, 3, 4, 5, 6, 8), (32, 64, 128)
EXACT = 1e-6
"""Relative, of products in float32: their sums run in another order."""

KINDS = {
    "normal": lambda random, n: random.standard_normal(n),
    "constant": lambda random, n: np.full(n, random.standard_normal()),
    "zero": lambda random, n: np.zeros(n),
    "negative zeros": lambda random, n: np.where(random.random(n) < 0.5, -0.0, 0.0),
    "huge": lambda random, n: random.uniform(-1.5e38, 1.5e38, n),
    "tiny": lambda random, n: random.standard_normal(n) * 1e-8,
    "denormal": lambda random, n: random.standard_normal(n) * 1e-41,
    "negative": lambda random, n: -np.abs(random.standard_normal(n)),
    "positive, far from zero": lambda random, n: 100 + random.random(n),
    "symmetric": lambda random, n: random.choice([-1.0, 1.0], n),
    "one outlier": lambda random, n: np.where(np.arange(n) == 3, 1e6, random.standard_normal(n)),
    "ties": lambda random, n: random.integers(-8, 9, n) / 2,
}


def same(a, b):
    """The same bits, zeros of either sign apart."""
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)


@given(
    rows=st.lists(st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=3), min_size=1, max_size=4),
    bits=st.sampled_from(BITS),
    group=st.sampled_from(GROUPS),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=150)
def test_codes_scales_biases_and_values_are_mlx_own(rows, bits, group, seed):
    random, count = np.random.default_rng(seed), max(map(len, rows))
    kinds = [(row * count)[:count] for row in rows]
    weight = np.stack([np.concatenate([KINDS[kind](random, group) for kind in row]) for row in kinds])
    weight = weight.astype(np.float32)
    expected = mx.quantize(mx.array(weight), group_size=group, bits=bits)
    values = mx.dequantize(*expected, group_size=group, bits=bits)
    for module, make in ((reference, torch.from_numpy), (ours, mx.array)):
        parts = module.quantize(make(weight), bits, group)
        assert all(same(part, wanted) for part, wanted in zip(parts, expected, strict=True))
        assert same(module.dequantize(*parts, bits, group), values)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", GROUPS)
def test_products_and_their_gradients_are_those_of_the_dense_weight(bits, group):
    random = np.random.default_rng(bits)
    weight, x, g = (random.standard_normal(shape).astype(np.float32) for shape in ((24, 256), (2, 5, 256), (2, 5, 24)))
    parts = mx.quantize(mx.array(weight), group_size=group, bits=bits)
    dense = np.array(mx.dequantize(*parts, group_size=group, bits=bits))

    _, (mine,) = mx.vjp(lambda x: ours.product(x, *parts, bits, group), [mx.array(x)], [mx.array(g)])
    y = ours.product(mx.array(x), *parts, bits, group)
    theirs = torch.from_numpy(x).requires_grad_()
    z = reference.product(theirs, *(torch.from_numpy(np.array(part)) for part in parts), bits, group)
    z.backward(torch.from_numpy(g))

    for found, wanted in ((y, x @ dense.T), (mine, g @ dense), (z.detach(), x @ dense.T), (theirs.grad, g @ dense)):
        assert relative(np.asarray(found), wanted) <= EXACT


def test_the_product_on_a_cpu_is_mlx_quantized_matmul():
    random = np.random.default_rng(0)
    x, weight = (mx.array(random.standard_normal(shape).astype(np.float32)) for shape in ((6, 64), (16, 64)))
    parts = mx.quantize(weight, group_size=32, bits=4)
    theirs = np.array(mx.quantized_matmul(x, *parts, transpose=True, group_size=32, bits=4))
    assert relative(np.array(ours.product(x, *parts, 4, 32)), theirs) <= EXACT


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_frozen_and_keeps_its_bias_and_its_shape(bias):
    weight, b = np.random.default_rng(1).standard_normal((8, 64)).astype(np.float32), np.arange(8, dtype=np.float32)
    plain, mirror = MLXLinear(64, 8, bias), Linear(64, 8, bias)
    plain.weight, mirror.weight.data = mx.array(weight), torch.from_numpy(weight)
    if bias:
        plain.bias, mirror.bias.data = mx.array(b), torch.from_numpy(b)
    a, c = ours.QuantizedLinear.from_linear(plain, 3, 32), reference.QuantizedLinear.from_linear(mirror, 3, 32)
    assert not a.trainable_parameters() and not any(p.requires_grad for p in c.parameters())
    assert a.shape == c.shape == plain.shape == mirror.shape == (8, 64)
    names = {"weight", "scales", "biases"} | ({"bias"} if bias else set())
    assert set(a.parameters()) == {name for name, _ in c.named_parameters()} == names
    assert same(a.dense(), c.dense())
    assert same(a.dequantized().weight, c.dequantized().weight.detach())
    x = np.ones((1, 64), np.float32)
    expected = x @ np.array(a.dense()).T + (b if bias else 0)
    np.testing.assert_allclose(np.array(a(mx.array(x))), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(c(torch.from_numpy(x)).numpy(), expected, rtol=1e-5, atol=1e-5)


def test_half_precision_comes_out_as_it_goes_in():
    weight = np.random.default_rng(2).standard_normal((8, 64)).astype(np.float32)
    x = np.random.default_rng(3).standard_normal((4, 64)).astype(np.float32)
    parts = mx.quantize(mx.array(weight), group_size=64, bits=4)
    mine = ours.product(mx.array(x).astype(mx.bfloat16), *parts, 4, 64)
    theirs = reference.product(
        torch.from_numpy(x).bfloat16(), *(torch.from_numpy(np.array(part)) for part in parts), 4, 64
    )
    assert mine.dtype == mx.bfloat16 and theirs.dtype == torch.bfloat16
    exact = x @ np.array(mx.dequantize(*parts, group_size=64, bits=4)).T
    for found in (np.array(mine.astype(mx.float32)), theirs.float().numpy()):
        assert 0 < relative(found, exact) < 0.02  # bfloat16 has eight bits
