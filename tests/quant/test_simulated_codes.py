"""Codes of weights and activations as arithmetic: PyTorch's and the papers'."""

import numpy as np
import pytest
import torch  # before MLX: see mlx_peft.backend.blas
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

# isort: split

from quant.rounded import LOG_CODES, ROUNDING, in_backends, numbers

from mlx_peft.codes.quantizers import LogSqrt2, Uniform, rounded_weight
from mlx_peft.codes.reparametrize import Reparametrization


@settings(max_examples=60)
@given(numbers, st.floats(-50, 50), st.floats(0.01, 100), st.sampled_from([8, 6, 4, 2]))
def test_uniform_codes_are_pytorchs_bit_for_bit(x, low, width, bits):
    quantizer = Uniform.over(low, low + width, bits)
    expected = torch.fake_quantize_per_tensor_affine(
        torch.from_numpy(x), quantizer.scale, quantizer.zero_point, 0, 2**bits - 1
    ).numpy()
    assert quantizer(np.zeros(1, np.float32)) == 0
    for found in (quantizer(x), *in_backends(quantizer, x)):
        assert np.array_equal(found, expected)


@settings(max_examples=60)
@given(arrays(np.float32, (3, 16), elements=st.floats(-1e3, 1e3, width=32)), st.sampled_from([8, 5, 4, 3, 2]))
def test_weights_are_pytorchs_symmetric_ones_bit_for_bit(weight, bits):
    top = 2 ** (bits - 1) - 1
    scales = np.maximum(np.abs(weight).max(1) / np.float32(top), np.float32(1e-12))
    expected = torch.fake_quantize_per_channel_affine(
        torch.from_numpy(weight), torch.from_numpy(scales), torch.zeros(3, dtype=torch.int32), 0, -top, top
    ).numpy()
    assert np.array_equal(rounded_weight(weight, bits), expected)


def test_a_smaller_scale_is_taken_where_it_has_the_smaller_error():
    weight = np.random.default_rng(0).standard_normal((8, 512)).astype(np.float32)
    errors = [
        np.square(rounded_weight(weight, 4, ratios) - weight).sum(1) for ratios in ((1.0,), (1.0, 0.8), (0.8,), (0.6,))
    ]
    assert np.array_equal(errors[1], np.minimum(errors[0], errors[2]))
    assert (errors[1] < errors[0]).any()


def paper_log_sqrt2(x, scale, bits):
    """RepQ-ViT, section 3.4, in float64: codes, and the reparametrised log2 form that dequantises them."""
    with np.errstate(divide="ignore"):
        codes = np.clip(np.rint(-2 * np.log2(x.astype(np.float64) / scale)), 0, 2**bits - 1)
    parity = codes % 2 == 1
    return codes, scale * (parity * (np.sqrt(2) - 1) + 1) * 2.0 ** np.floor(-codes / 2)


@pytest.mark.parametrize("bits", [8, 4, 3])
def test_log_sqrt2_codes_are_the_papers(bits):
    random = np.random.default_rng(bits)
    x = np.concatenate([random.dirichlet(np.full(65, 0.3), 400).ravel(), [0.0, 1.0]]).astype(np.float32)
    quantizer = LogSqrt2.up_to(0.9, bits)
    codes, values = paper_log_sqrt2(x, quantizer.scale, bits)
    assert (quantizer.codes(x) != codes).mean() <= LOG_CODES
    assert quantizer(np.float32([0.0])) == quantizer.levels[-1]  # as the paper clips
    for found in (quantizer(x), *in_backends(quantizer, x)):
        differing = np.abs(found - values) > ROUNDING * values + 1e-37  # below it, float32 has fewer digits
        assert differing.mean() <= LOG_CODES


def random_norm(dim=12, tokens=400, seed=0):
    """What leaves a LayerNorm whose channels differ a hundredfold, and what reads it."""
    random = np.random.default_rng(seed)
    normal = random.standard_normal((tokens, dim))
    gamma, beta = 10 ** random.uniform(-1, 1, dim), random.standard_normal(dim)
    tensors = {
        "n.weight": gamma, "n.bias": beta, "a.weight": random.standard_normal((7, dim)), "a.bias": np.ones(7),
        "b.weight": random.standard_normal((5, dim)), "b.bias": np.zeros(5),
    }  # fmt: skip
    return normal, {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def test_the_reparametrisation_is_the_papers():
    """Section 3.3: r1 = s / s', r2 = z - z'; gamma / r1, (beta + s r2) / r1; r1 W, b - W (s r2)."""
    normal, tensors = random_norm()
    x = normal * tensors["n.weight"] + tensors["n.bias"]
    low, high = x.min(0), x.max(0)
    s, bits = (high - low) / 15, 4
    z = np.rint(-low / s)
    change = Reparametrization.of(low, high, bits)
    assert change.quantizer.scale == pytest.approx(s.mean(), rel=1e-6)
    assert change.quantizer.zero_point == np.rint(z.mean())  # rounded, where the paper's mean is no integer
    r1, r2 = s / s.mean(), z - np.rint(z.mean())
    found = change.absorbed(tensors, "n", ["a", "b"])
    expected = {"n.weight": tensors["n.weight"] / r1, "n.bias": (tensors["n.bias"] + s * r2) / r1}
    for layer in "ab":
        weight = tensors[f"{layer}.weight"]
        expected |= {f"{layer}.weight": weight * r1, f"{layer}.bias": tensors[f"{layer}.bias"] - weight @ (s * r2)}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name], tensor, rtol=ROUNDING, atol=ROUNDING)
    channelwise = (np.clip(np.rint(x / s) + z, 0, 15) - z) * s
    differing = np.abs(change(x) - channelwise) > 1e-3 * s  # numbers at an edge, which float32 puts on its other side
    assert differing.mean() <= 1e-3


def test_a_channel_that_never_varies_does_no_harm():
    low, high = np.array([-1.0, 2.0, -3.0]), np.array([1.0, 2.0, 3.0])
    change = Reparametrization.of(low, high, 8)
    assert (change.ratio > 5e-4).all()
    assert change(np.float32([[0.5, 2.0, -1.0]]))[0, 1] == pytest.approx(2.0, abs=0.01)
