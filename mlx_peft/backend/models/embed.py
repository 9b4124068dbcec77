"""From pixels to tokens: the patch embedding, the tokens before the patches, the position embedding."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_peft.backend.models.layers import ChannelsLast, norm, spread
from mlx_peft.vit.architecture import Architecture


class PatchProjection(ChannelsLast):
    """The convolution with stride = kernel, as one product of flattened patches.

    ``weight`` is ``(dim, patch, patch, 3)``.
    """

    def __init__(self, architecture: Architecture):
        super().__init__()
        patch = architecture.patch_size
        self.weight = mx.zeros((architecture.embed_dim, patch, patch, 3))
        if not architecture.pre_norm:  # timm: CLIP's patch embedding has no bias
            self.bias = mx.zeros((architecture.embed_dim,))

    def __call__(self, x: mx.array) -> mx.array:
        dim, patch = self.weight.shape[:2]
        batch, grid = x.shape[0], x.shape[1] // patch
        x = x[:, : grid * patch, : grid * patch].reshape(batch, grid, patch, grid, patch, 3)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, grid * grid, patch * patch * 3)
        x = x @ self.weight.astype(x.dtype).reshape(dim, -1).T
        return x + spread(self.bias, x.shape, x.dtype) if "bias" in self else x


class PatchEmbed(nn.Module):
    """Images ``(batch, size, size, 3)`` to patch tokens ``(batch, grid^2, dim)``."""

    def __init__(self, architecture: Architecture):
        super().__init__()
        self.proj = PatchProjection(architecture)
        self.norm = norm(architecture, architecture.embed_dim, architecture.embed_norm)

    def __call__(self, x: mx.array) -> mx.array:
        return self.norm(self.proj(x))
