"""Pixels as decoded to the model's input, inside the compiled step: resize where the source is small, normalise."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from convert.resample import resample_matrix
from mlx_peft.config.architecture import Preprocessing


def preprocess(images: mx.array, preprocessing: Preprocessing, size: int, dtype: mx.Dtype) -> mx.array:
    """uint8 ``(batch, h, w, 3)`` to normalised ``(batch, size, size, 3)``.

    A resize is two matrix products with Pillow's antialiased filter: R_h x R_w^T, clipped to 0..255. It differs from
    Pillow's own by less than one level, since Pillow rounds after each pass.
    """
    x = images.astype(mx.float32)
    batch, height, width, _ = x.shape
    if height != size:
        rows = mx.array(resample_matrix(height, size, preprocessing.interpolation, True))
        x = (rows @ x.reshape(batch, height, width * 3)).reshape(batch, size, width, 3)
    if width != size:
        columns = mx.array(resample_matrix(width, size, preprocessing.interpolation, True))
        x = (x.transpose(0, 1, 3, 2) @ columns.T).transpose(0, 1, 3, 2)
    if (height, width) != (size, size):
        x = mx.clip(x, 0, 255)
    mean, std = np.array(preprocessing.mean, np.float32), np.array(preprocessing.std, np.float32)
    return (x * mx.array(1 / (255 * std)) - mx.array(mean / std)).astype(dtype)
