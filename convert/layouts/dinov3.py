"""DINOv3's checkpoints as Meta published them, under timm's names; mlx-image's, which have the same names.

The names are those of ``dinov3/models/vision_transformer.py`` of facebookresearch/dinov3.
"""

from __future__ import annotations

import re

import numpy as np

from convert.files import listed, renamed
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.vit.architecture import Architecture

REGISTERS, PERIODS = "storage_tokens", "rope_embed.periods"
KERNELS = "patch_embed.proj.weight"

LEFT_OUT = {
    r"(local_cls_norm)\..*": "a norm of its training, for small crops alone",
    r"(projectors)\..*": "the projection heads of a distillation",
}
"""Tensors of these names are used by no classifier; what they are, by what is matched first."""

NAMES = {
    r"storage_tokens": "reg_token",
    r"(blocks\.\d+)\.ls([12])\.gamma": r"\1.gamma_\2",
    r"(blocks\.\d+\.mlp)\.w1\.(weight|bias)": r"\1.fc1_g.\2",
    r"(blocks\.\d+\.mlp)\.w2\.(weight|bias)": r"\1.fc1_x.\2",
    r"(blocks\.\d+\.mlp)\.w3\.(weight|bias)": r"\1.fc2.\2",
}

BASE = 100.0
"""The temperature of the rotary periods in every published model."""


def from_dinov3(tensors: Tensors) -> tuple[Tensors, tuple[str, ...]]:
    """Meta's names as timm's: the tensors themselves where they are not DINOv3's.

    Biases of q and v stand apart; that of k is masked there, and none here. The rotary periods are no parameter: they
    are computed, in float32, and what a file has that was rounded is said.

    Returns:
        The tensors, and what was left out or is another number, in words.

    Raises:
        UserError: where k has a bias that counts.
    """
    if REGISTERS not in tensors:
        return tensors, ()
    notes = []
    for pattern, what in LEFT_OUT.items():
        if found := {name: match[1] for name in tensors if (match := re.fullmatch(pattern, name))}:
            tensors = {name: tensor for name, tensor in tensors.items() if name not in found}
            notes.append(f"{listed(sorted(set(found.values())))}: {what}, left out")
    result: Tensors = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"(blocks\.\d+\.attn)\.qkv\.bias", name):
            q, v = _of_q_and_v(name, tensor, tensors.get(f"{name}_mask"))
            result |= {f"{match[1]}.q_bias": q, f"{match[1]}.v_bias": v}
        elif name == PERIODS:
            notes += _of_periods(tensor)
        elif name == KERNELS and tensor.ndim == 4 and tensor.shape[1] != 3 == tensor.shape[3]:  # as MLX has them
            result[name] = np.ascontiguousarray(tensor.transpose(0, 3, 1, 2))
        elif not name.endswith(".bias_mask"):
            result[name] = tensor

    def ours(name: str) -> str:
        return next((re.sub(f"^{old}$", new, name) for old, new in NAMES.items() if re.fullmatch(old, name)), name)

    return renamed(result, ours), tuple(notes)


def without_zero_biases(tensors: Tensors, architecture: Architecture) -> tuple[Tensors, tuple[str, ...]]:
    """Without the biases of q and v, where the model has none and all of them are zero: so Meta's distilled ones are.

    timm has a name for either: ``vit_large_patch16_dinov3`` without, ``vit_large_patch16_dinov3_qkvb`` with.
    """
    found = {name for name in tensors if re.fullmatch(r"blocks\.\d+\.attn\.[qv]_bias", name)}
    if architecture.qkv_bias or not found or any(tensors[name].any() for name in found):
        return tensors, ()
    kept = {name: tensor for name, tensor in tensors.items() if name not in found}
    return kept, ("q_bias, v_bias: all are zero, and left out, as the model has none",)


def _of_q_and_v(name: str, bias: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The thirds of a bias that count. Raises UserError where that of k does too."""
    if bias.ndim != 1 or len(bias) % 3:
        raise UserError(f"{name} has the shape {bias.shape}: q, k and v should each have a third")
    counted = bias if mask is None else np.where(mask == 0, np.float32(0), bias)
    q, k, v = np.split(counted, 3)
    if k.any():
        raise UserError(f"{name}: k has a bias that is not masked, which no DINOv3 of timm's has")
    return q, v


def _of_periods(periods: np.ndarray) -> list[str]:
    """What is to be said of a file's rotary periods: nothing where they are what is computed."""
    exact = np.float32(BASE) ** (np.arange(periods.size, dtype=np.float32) / np.float32(max(periods.size, 1)))
    away = np.abs(periods.reshape(-1) / exact - 1).max(initial=0)
    if away < 1e-6:
        return []
    if away < 2**-8:
        return [
            f"{PERIODS}: the file has them rounded to bfloat16, by up to {100 * away:.1f} %, and Meta's code uses them "
            "so; here they are computed in float32, as timm and transformers do, which gives slightly other features"
        ]
    raise UserError(f"{PERIODS} are not those of a temperature of {BASE:.0f}: such a DINOv3 is not supported")
