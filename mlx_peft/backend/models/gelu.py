"""The exact GELU.

MLX's CPU kernels compute erf and exp one element at a time, so GELU took a third of a ViT-S training step there. On
the CPU it is computed from rational functions, which the compiler turns into vector instructions: odd in x, clipped to
|x| <= 5.75, where Phi is 1 to within 5e-9, and fitted to x -> Phi(x) - 1/2 and x -> gelu'(x) - 1/2 by iteratively
reweighted least squares. Their largest errors, 1.4e-8 and 2.6e-9, are below float32's rounding. A device's kernels have
erf and exp in hardware, or as fast.

Either way the compiler makes one kernel of each pass, forward and backward, with float32 inside and the dtype of x
outside. The backward pass computes from -x, of which all is the mirror image: were it computed from x, the compiler
would find what both passes have in common, and keep that from one to the other, in float32, in arrays of their own.
"""

from __future__ import annotations

import math

import mlx.core as mx

LIMIT = 5.75
PHI = (
    (0.3989421971410991, 0.03523630389423738, 0.004758768925510795, 0.0001823307960094779, 6.38781814891038e-06,
     2.1314499334581378e-08),
    (1.0, 0.25498964948806646, 0.029429175938305848, 0.0019613127302527153, 7.767128111889636e-05,
     1.1581566181048783e-06),
)  # fmt: skip
SLOPE = (
    (0.7978845403866355, -0.024007357736493793, 0.013808472495591837, 0.0001774404520003663, 3.206993395145619e-05,
     8.403521791839302e-07, 1.1230484604509813e-08, -2.801432591190029e-11),
    (1.0, 0.3032443100296149, 0.04338856936260277, 0.0038456191445012155, 0.00023203971297901504,
     9.426631406570106e-06, 2.890258605912935e-07),
)  # fmt: skip
"""The coefficients of numerator and denominator, polynomials in x^2, with the lowest power first."""


def gelu(x: mx.array) -> mx.array:
    """x Phi(x), Phi the standard normal's cumulative distribution (Hendrycks and Gimpel 2016, arXiv 1606.08415)."""
    return erf_gelu(x) if mx.default_device().type == mx.gpu else rational_gelu(x)


@mx.custom_function
def erf_gelu(x: mx.array) -> mx.array:
    """``gelu`` from erf: Phi(x) = (1 + erf(x / sqrt 2)) / 2."""
    wide = x.astype(mx.float32)
    return (wide * (0.5 + 0.5 * mx.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


@erf_gelu.vjp
def _erf_gelu_vjp(x: mx.array, cotangent: mx.array, _: mx.array) -> mx.array:
    mirrored = (-x).astype(mx.float32)
    density = mx.exp(-0.5 * mirrored * mirrored) / math.sqrt(2 * math.pi)
    slope = 0.5 - 0.5 * mx.erf(mirrored * math.sqrt(0.5)) - mirrored * density
    return cotangent * slope.astype(x.dtype)


@mx.custom_function
def rational_gelu(x: mx.array) -> mx.array:
    """``gelu`` from rational functions; to within 1e-6 of it, as MLX's own."""
    wide = x.astype(mx.float32)
    return (wide * (0.5 + _odd(wide, *PHI))).astype(x.dtype)


@rational_gelu.vjp
def _rational_gelu_vjp(x: mx.array, cotangent: mx.array, _: mx.array) -> mx.array:
    return cotangent * (0.5 - _odd((-x).astype(mx.float32), *SLOPE)).astype(x.dtype)


def _odd(x: mx.array, numerator: tuple[float, ...], denominator: tuple[float, ...]) -> mx.array:
    """x P(x^2) / Q(x^2), constant beyond the limit."""
    x = mx.clip(x, -LIMIT, LIMIT)
    square = x * x
    return x * _horner(numerator, square) / _horner(denominator, square)


def _horner(coefficients: tuple[float, ...], x: mx.array) -> mx.array:
    value = mx.array(coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value * x + coefficient
    return value
