"""From pixels to tokens: the patch embedding, the tokens before the patches, the position embedding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlx_peft.vit.architecture import Architecture
from torch_ref.models.layers import norm


class PatchProjection(nn.Module):
    """The convolution with stride = kernel. ``weight`` is ``(dim, 3, patch, patch)``, as in timm."""

    def __init__(self, architecture: Architecture):
        super().__init__()
        patch = architecture.patch_size
        self.weight = nn.Parameter(torch.zeros(architecture.embed_dim, 3, patch, patch))
        # timm: CLIP's patch embedding has no bias
        self.bias = None if architecture.pre_norm else nn.Parameter(torch.zeros(architecture.embed_dim))

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        x = F.conv2d(x.permute(0, 3, 1, 2), self.weight.to(x.dtype), bias, stride=self.weight.shape[-1])
        return x.flatten(2).transpose(1, 2)


class PatchEmbed(nn.Module):
    """Images ``(batch, size, size, 3)`` to patch tokens ``(batch, grid^2, dim)``."""

    def __init__(self, architecture: Architecture):
        super().__init__()
        self.proj = PatchProjection(architecture)
        self.norm = norm(architecture, architecture.embed_dim, architecture.embed_norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))
