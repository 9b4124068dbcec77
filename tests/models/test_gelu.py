"""GELU's two forms, of a CPU and of a device, against scipy's erf."""

import mlx.core as mx
import numpy as np
import pytest
from scipy.special import erf

from mlx_peft.backend.models.gelu import LIMIT, erf_gelu, rational_gelu

FORMS = pytest.mark.parametrize("form", [rational_gelu, erf_gelu], ids=["rational", "erf"])

X = np.concatenate([np.linspace(-12, 12, 100_001), [LIMIT, -LIMIT, 0.0, 1e30, -1e30]]).astype(np.float32)


def exact(x):
    x = x.astype(np.float64)
    phi = (1 + erf(x / np.sqrt(2))) / 2
    return x * phi, phi + x * np.exp(-x * x / 2) / np.sqrt(2 * np.pi)


@FORMS
def test_values_and_slopes_are_exact_to_rounding(form):
    value = np.array(form(mx.array(X)))
    slope = np.array(mx.grad(lambda x: form(x).sum())(mx.array(X)))
    expected, expected_slope = exact(X)
    # Relative to |x| + 1, some roundings of 1.2e-7; the fits themselves are ten times closer.
    assert (np.abs(value - expected) <= 5e-7 * (np.abs(X) + 1)).all()
    assert (np.abs(slope - expected_slope) <= 5e-7).all()


@FORMS
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_is_computed_in_float32_inside(form, dtype):
    x = mx.array(np.linspace(-8, 8, 1001).astype(np.float32)).astype(dtype)
    value = np.array(form(x).astype(mx.float32))
    expected, _ = exact(np.array(x.astype(mx.float32)))
    eps = 2.0**-10 if dtype == mx.float16 else 2.0**-7
    assert form(x).dtype == dtype
    assert (np.abs(value - expected) <= eps * np.abs(expected) + 1e-6).all()
