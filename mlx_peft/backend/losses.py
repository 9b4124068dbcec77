"""The loss of each task, by its name."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from mlx_peft.tasks.multi_label import MULTI_LABEL
from mlx_peft.tasks.single_label import SINGLE_LABEL

Loss = Callable[[mx.array, mx.array, mx.array, float], mx.array]
"""Logits ``(batch, classes)``, the task's targets, what the sum over the rows is divided by and the label smoothing, to
one number, float32."""


def cross_entropy(logits: mx.array, targets: mx.array, count: mx.array, smoothing: float) -> mx.array:
    """Sum of the rows' losses / count, in float32; a row that only fills the batch up adds nothing.

    Loss of a row: -sum_k t_k log p_k, t its targets: float32 ``(batch, classes)``, which come smoothed; or one class,
    int32 ``(batch,)``, smoothed here: (1 - e) (-log p_y) + e mean_k (-log p_k), e the label smoothing (Szegedy et al.
    2016, sec. 7).
    """
    log_p = _log_softmax(logits)
    if mx.issubdtype(targets.dtype, mx.floating):
        return -(targets * log_p).sum() / count
    valid = targets >= 0
    picked = mx.take_along_axis(log_p, mx.where(valid, targets, 0)[:, None], axis=-1)[:, 0]
    rows = -(1 - smoothing) * picked - smoothing * log_p.mean(axis=-1)
    return mx.where(valid, rows, 0.0).sum() / count


def binary_cross_entropy(logits: mx.array, targets: mx.array, count: mx.array, smoothing: float) -> mx.array:
    """Sum of the losses of each row and class / count, in float32; a row that only fills the batch up adds nothing.

    Loss of a row and class: -sum_k t_k log p_k, t float32 ``(batch, classes, 2)``, absent and present, which come
    smoothed, and p the softmax of the logits (0, z): the binary cross entropy of the sigmoid of z.
    """
    return -(targets * _log_softmax(mx.stack([mx.zeros_like(logits), logits], -1))).sum() / count


def _log_softmax(logits: mx.array) -> mx.array:
    """Over the last axis, in float32."""
    log_p = logits.astype(mx.float32)
    return log_p - mx.logsumexp(log_p, axis=-1, keepdims=True)


LOSSES: dict[str, Loss] = {SINGLE_LABEL.name: cross_entropy, MULTI_LABEL.name: binary_cross_entropy}
