"""Rotations of blocks of a layer's inputs, made of skew-symmetric matrices: S^T = -S."""

from __future__ import annotations

import torch
from torch import Tensor


def skew(values: Tensor, index: Tensor, sign: Tensor) -> Tensor:
    """S ``(blocks, b, b)`` of what is above the diagonal of each, ``(blocks, b (b - 1) / 2)``; see ``skew_places``."""
    return values[:, index] * sign


def cayley(S: Tensor) -> Tensor:
    """(I - S) (I + S)^-1 = 2 (I + S)^-1 - I: a rotation, for every S."""
    eye = torch.eye(S.shape[-1], dtype=S.dtype, device=S.device)
    return 2 * torch.linalg.inv(eye + S) - eye


def neumann(S: Tensor, terms: int) -> Tensor:
    """I + 2 (S + S^2 + ... + S^(terms - 2)) + S^(terms - 1).

    It is the beginning of (I + S) (I - S)^-1: of ``cayley`` of -S.
    """
    power, total = S, torch.eye(S.shape[-1], dtype=S.dtype, device=S.device) + 2 * S
    for _ in range(terms - 3):
        power = power @ S
        total = total + 2 * power
    return total + power @ S


def turned(x: Tensor, R: Tensor) -> Tensor:
    """x R, block by block, in float32 and back in the dtype of x: half precision has few numbers around 1.

    Args:
        x: ``(..., in)``.
        R: ``(in / b, b, b)``, or ``(1, b, b)`` for all blocks alike.
    """
    blocks = x.float().reshape(-1, x.shape[-1] // R.shape[-1], R.shape[-1]).transpose(0, 1)
    return (blocks @ R).transpose(0, 1).reshape(x.shape).to(x.dtype)
