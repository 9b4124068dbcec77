"""Resizing as matrices: for position grids and patch kernels here, for images inside the backends' steps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlx_peft.vit.registry import Resampling
from mlx_peft.vit.resampling import KERNELS, pillow_weights


def resample_matrix(
    source: int, target: int, interpolation: str, antialias: bool, align_corners: bool = False
) -> NDArray[np.float32]:
    """The float32 matrix ``(target, source)`` that resizes one axis.

    Antialiased, it is Pillow's filter, which widens with the reduction (bicubic with a = -0.5); otherwise it is plain
    two-point or four-point interpolation as ``torch.nn.functional.interpolate`` has it (bicubic with a = -0.75, the
    edge repeated).

    Args:
        interpolation: ``bilinear`` or ``bicubic``.
        align_corners: the outermost samples coincide; without antialiasing only.
    """
    if antialias:
        return pillow_weights(source, target, interpolation).astype(np.float32)
    kernel, reach = KERNELS[interpolation]
    rows = np.arange(target)[:, None]
    at = rows * ((source - 1) / max(target - 1, 1)) if align_corners else (rows + 0.5) * (source / target) - 0.5
    taps = np.floor(at) + np.arange(1 - reach, reach + 1)
    matrix = np.zeros((target, source))
    np.add.at(matrix, (rows, np.clip(taps, 0, source - 1).astype(int)), kernel(taps - at, -0.75))
    return matrix.astype(np.float32)


PIXEL_BITS, LOW_BITS = 22, 12
"""Pillow's weights are whole numbers with PIXEL_BITS after the point; ``pixel_matrices`` splits LOW_BITS off."""


def pixel_matrices(source: int, target: int, interpolation: str) -> NDArray[np.float32]:
    """Pillow's weights for one axis of 8-bit images in two parts: whole numbers, float32 ``(2, target, source)``.

    The weights are those of the antialiased ``resample_matrix`` times 2^22, rounded: 2^12 ``[0]`` + ``[1]``. Each part
    has at most 11 bits and a pixel 8, so that float32 products and their sums are exact, in any order and on hardware
    that cuts factors down to 11 bits. What remains is whole-number arithmetic: add half, divide by 2^22, clip.
    """
    whole = pillow_weights(source, target, interpolation, PIXEL_BITS)
    high = np.floor(whole / 2**LOW_BITS + 0.5)
    return np.stack([high, whole - high * 2**LOW_BITS]).astype(np.float32)


def resize_positions(positions: np.ndarray, prefix: int, grid: int, resampling: Resampling) -> np.ndarray:
    """A position embedding ``(1, prefix + g * g, dim)`` for ``(1, prefix + grid * grid, dim)``, as timm resizes it.

    The first ``prefix`` positions, those of class and other tokens, stay as they are.
    """
    before, patches = positions[:, :prefix], positions[0, prefix:]
    side, dim = round(len(patches) ** 0.5), positions.shape[-1]
    matrix = resample_matrix(side, grid, resampling.interpolation, resampling.antialias, resampling.align_corners)
    resized = matrix @ (matrix @ patches.reshape(side, side * dim)).reshape(grid, side, dim)
    return np.concatenate([before, resized.reshape(1, grid * grid, dim)], axis=1)


def resize_patches(kernels: np.ndarray, size: int, resampling: Resampling) -> np.ndarray:
    """Patch kernels ``(dim, 3, p, p)`` for ``(dim, 3, size, size)``: those that answer a resized patch alike.

    With R the resizing of an axis it is P k P^T, P the pseudo-inverse of R^T (Beyer et al. 2023, FlexiViT, 3.4).
    """
    matrix = resample_matrix(kernels.shape[-1], size, resampling.interpolation, resampling.antialias)
    inverse = np.linalg.pinv(matrix.T.astype(np.float64))
    resized: np.ndarray = inverse @ kernels @ inverse.T
    return resized.astype(np.float32)
