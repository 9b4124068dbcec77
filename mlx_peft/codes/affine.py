"""MLX's affine codes in NumPy: made, packed and read. A backend makes the same ones, bit for bit, in its ``quant``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlx_peft.config.quantization import Quantization
from mlx_peft.core.border import Tensors
from mlx_peft.vit.architecture import Architecture

Matrix = NDArray[np.float32]
Codes = tuple[NDArray[np.uint32], Matrix, Matrix]
"""The words, scales and biases of a weight."""


def quantized(weight: Matrix, bits: int, group_size: int) -> Codes:
    """The codes of a weight ``(out, in)``; the rule stands in ``quant.affine`` of a backend."""
    most = 2**bits - 1
    groups = weight.reshape(len(weight), -1, group_size)
    lo, hi = groups.min(axis=2), groups.max(axis=2)
    scale = np.maximum((hi - lo) / np.float32(most), np.float32(1e-7))
    below = np.abs(lo) > np.abs(hi)
    scale, edge = np.where(below, scale, -scale), np.where(below, lo, hi)
    q0 = np.rint(edge / scale)
    scales = np.divide(edge, q0, out=scale, where=q0 != 0)
    biases = np.where(q0 != 0, edge, np.float32(0))
    codes = np.clip(np.rint((groups - biases[..., None]) / scales[..., None]), 0, most)
    return packed(codes.reshape(weight.shape).astype(np.uint32), bits), scales, biases


def dequantized(packed: NDArray[np.uint32], scales: Matrix, biases: Matrix, bits: int) -> Matrix:
    """The weight ``(out, in)`` that codes stand for: scale * code + bias, in float32.

    Args:
        packed: ``(out, in bits / 32)``, a little-endian stream of bits.
        scales, biases: one for each group, ``(out, groups)``.
        bits: of a code.
    """
    stream = np.unpackbits(np.ascontiguousarray(packed, "<u4").view(np.uint8), axis=1, bitorder="little")
    places = (1 << np.arange(bits)).astype(np.float32)
    codes = stream.reshape(*scales.shape, -1, bits).astype(np.float32) @ places
    weight: Matrix = codes * scales[..., None] + biases[..., None]
    return weight.reshape(len(packed), -1)


def packed(codes: NDArray[np.uint32], bits: int) -> NDArray[np.uint32]:
    """Codes ``(out, in)`` as ``dequantized`` reads them: ``(out, in bits / 32)``."""
    stream = (codes[..., None] >> np.arange(bits, dtype=np.uint32)).astype(np.uint8) & 1
    return np.packbits(stream.reshape(len(codes), -1), axis=1, bitorder="little").view("<u4").astype(np.uint32)


def without_codes(tensors: Tensors, architecture: Architecture, quantization: Quantization) -> Tensors:
    """A quantised model's tensors with the weights that its codes stand for, float32."""
    result = dict(tensors)
    for site in quantization.sites(architecture):
        scales, biases = (result.pop(f"{site.path}.{name}") for name in ("scales", "biases"))
        result[f"{site.path}.weight"] = dequantized(tensors[f"{site.path}.weight"], scales, biases, quantization.bits)
    return result


def sqnr(exact: np.ndarray, approximate: np.ndarray) -> float:
    """The power of a signal over that of its error, in dB; infinite where there is no error."""
    signal = np.square(exact, dtype=np.float64).sum()
    return decibels(signal, np.square(exact.astype(np.float64) - approximate).sum())


def decibels(signal: float, noise: float) -> float:
    """The ratio of two powers in dB; infinite where there is no noise."""
    return float("inf") if noise == 0 else float(10 * np.log10(max(signal, np.finfo(np.float64).tiny) / noise))
