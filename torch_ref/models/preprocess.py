"""Pixels as decoded to the model's input, inside the step: resize where the source is small, normalise."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from convert.resample import resample_matrix
from mlx_peft.config.architecture import Preprocessing


def preprocess(images: Tensor, preprocessing: Preprocessing, size: int, dtype: torch.dtype) -> Tensor:
    """uint8 ``(batch, h, w, 3)`` to normalised ``(batch, size, size, 3)``.

    A resize is two matrix products with Pillow's antialiased filter: R_h x R_w^T, clipped to 0..255. It differs from
    Pillow's own by less than one level, since Pillow rounds after each pass.
    """
    device = images.device
    x = images.float()
    batch, height, width, _ = x.shape
    if height != size:
        rows = torch.from_numpy(resample_matrix(height, size, preprocessing.interpolation, True)).to(device)
        x = (rows @ x.reshape(batch, height, width * 3)).reshape(batch, size, width, 3)
    if width != size:
        columns = torch.from_numpy(resample_matrix(width, size, preprocessing.interpolation, True)).to(device)
        x = (x.transpose(2, 3) @ columns.T).transpose(2, 3)
    if (height, width) != (size, size):
        x = x.clamp(0, 255)
    mean, std = np.array(preprocessing.mean, np.float32), np.array(preprocessing.std, np.float32)
    scale, shift = torch.from_numpy(1 / (255 * std)).to(device), torch.from_numpy(mean / std).to(device)
    return (x * scale - shift).to(dtype)
