"""The loss of each task, by its name."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mlx_peft.tasks.multi_label import MULTI_LABEL
from mlx_peft.tasks.single_label import IGNORED, SINGLE_LABEL

Loss = Callable[[Tensor, Tensor, float, float], Tensor]
"""Logits ``(batch, classes)``, the task's targets, what the sum over the rows is divided by and the label smoothing, to
one number, float32."""


def cross_entropy(logits: Tensor, targets: Tensor, count: float, smoothing: float) -> Tensor:
    """Sum of the rows' losses / count, in float32; a row that only fills the batch up adds nothing.

    Loss of a row: -sum_k t_k log p_k, t its targets: float32 ``(batch, classes)``, which come smoothed; or one class,
    int32 ``(batch,)``, smoothed here: (1 - e) (-log p_y) + e mean_k (-log p_k), e the label smoothing (Szegedy et al.
    2016, sec. 7).
    """
    if targets.is_floating_point():
        return -(targets * _log_softmax(logits)).sum() / count
    targets = targets.long()
    total = F.cross_entropy(logits.float(), targets, reduction="sum", ignore_index=IGNORED, label_smoothing=smoothing)
    return total / count


def binary_cross_entropy(logits: Tensor, targets: Tensor, count: float, smoothing: float) -> Tensor:
    """Sum of the losses of each row and class / count, in float32; a row that only fills the batch up adds nothing.

    Loss of a row and class: -sum_k t_k log p_k, t float32 ``(batch, classes, 2)``, absent and present, which come
    smoothed, and p the softmax of the logits (0, z): the binary cross entropy of the sigmoid of z.
    """
    return -(targets * _log_softmax(torch.stack([torch.zeros_like(logits), logits], -1))).sum() / count


def _log_softmax(logits: Tensor) -> Tensor:
    """Over the last axis, in float32."""
    return logits.float().log_softmax(-1)


LOSSES: dict[str, Loss] = {SINGLE_LABEL.name: cross_entropy, MULTI_LABEL.name: binary_cross_entropy}
