"""Resizing matrices against torch, Pillow and timm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from timm.layers import resample_abs_pos_embed
from timm.layers.patch_embed import resample_patch_embed
from torch.nn.functional import interpolate

from mlx_peft.vit.registry import Resampling
from mlx_peft.vit.resample import resample_matrix, resize_patches, resize_positions

COORDINATES = 5e-7  # torch finds sampling points in float32: this times the source's size is its own error
ROUNDING = 1e-6

SIZES = [(1, 3), (2, 1), (7, 14), (16, 16), (14, 24), (28, 224), (32, 7), (37, 8), (97, 14)]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("antialias", "align_corners"), [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_the_matrix_is_torchs_interpolation(
    source: int, target: int, interpolation: str, antialias: bool, align_corners: bool
) -> None:
    basis = torch.eye(source)[None, :, :, None].expand(-1, -1, -1, 2)
    resized = interpolate(basis, (target, 2), mode=interpolation, antialias=antialias, align_corners=align_corners)
    matrix = resample_matrix(source, target, interpolation, antialias, align_corners)
    assert matrix.dtype == np.float32 and matrix.shape == (target, source)
    np.testing.assert_allclose(matrix, resized[0, :, :, 0].numpy().T, atol=ROUNDING + COORDINATES * source)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("source", "target"), [(28, 224), (32, 48), (100, 56)])
def test_antialiased_it_is_pillows_filter(source: int, target: int, interpolation: str) -> None:
    pixels = np.random.default_rng(0).integers(64, 192, (source, source), np.uint8)
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    resized = Image.fromarray(pixels).resize((target, target), filters[interpolation])
    matrix = resample_matrix(source, target, interpolation, True)
    ours = matrix @ pixels.astype(np.float32) @ matrix.T
    # Pillow rounds to whole levels after each of two passes, and the second one's weights add up to 1.4 in magnitude.
    assert np.abs(ours - np.asarray(resized)).max() < 1.2


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize(("side", "grid"), [(37, 8), (14, 24), (16, 7)])
@pytest.mark.parametrize(
    "resampling", [Resampling(), Resampling("bilinear", False), Resampling("bilinear", False, True)], ids=str
)
def test_positions_are_resized_as_timm_does(prefix: int, side: int, grid: int, resampling: Resampling) -> None:
    positions = np.random.default_rng(0).normal(0, 0.1, (1, prefix + side**2, 24)).astype(np.float32)
    theirs = resample_abs_pos_embed(
        torch.from_numpy(positions),
        [grid, grid],
        num_prefix_tokens=prefix,
        interpolation=resampling.interpolation,
        antialias=resampling.antialias,
        align_corners=resampling.align_corners or None,
    )
    ours = resize_positions(positions, prefix, grid, resampling)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs.numpy(), atol=ROUNDING)


@pytest.mark.parametrize("size", [8, 14, 32])
def test_patch_kernels_are_resized_as_timm_does(size: int) -> None:
    kernels = np.random.default_rng(0).normal(0, 0.02, (6, 3, 16, 16)).astype(np.float32)
    theirs = resample_patch_embed(torch.from_numpy(kernels), [size, size])
    # timm inverts the matrix in float32.
    np.testing.assert_allclose(resize_patches(kernels, size, Resampling()), theirs.numpy(), atol=ROUNDING)
