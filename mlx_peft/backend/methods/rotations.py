"""Rotations of blocks of a layer's inputs, made of skew-symmetric matrices: S^T = -S."""

from __future__ import annotations

import mlx.core as mx


def skew(values: mx.array, index: mx.array, sign: mx.array) -> mx.array:
    """S ``(blocks, b, b)`` of what is above the diagonal of each, ``(blocks, b (b - 1) / 2)``; see ``skew_places``."""
    return values[:, index] * sign


def cayley(S: mx.array) -> mx.array:
    """(I - S) (I + S)^-1 = 2 (I + S)^-1 - I: a rotation, for every S."""

    @mx.custom_function
    def rotation(S: mx.array) -> mx.array:
        eye = mx.eye(S.shape[-1])
        return 2 * mx.linalg.inv(eye + S, stream=mx.cpu) - eye  # MLX inverts on the CPU alone

    @rotation.vjp
    def rotation_vjp(S, cotangent, R):  # type: ignore[no-untyped-def]
        # MLX has no gradient of an inverse. With M = (I + S)^-1 = (R + I) / 2: dR = -2 M dS M.
        M = ((R + mx.eye(R.shape[-1])) / 2).swapaxes(-1, -2)
        return -2 * (M @ cotangent @ M)

    return rotation(S)


def neumann(S: mx.array, terms: int) -> mx.array:
    """I + 2 (S + S^2 + ... + S^(terms - 2)) + S^(terms - 1).

    It is the beginning of (I + S) (I - S)^-1: of ``cayley`` of -S.
    """
    power, total = S, mx.eye(S.shape[-1]) + 2 * S
    for _ in range(terms - 3):
        power = power @ S
        total = total + 2 * power
    return total + power @ S


def turned(x: mx.array, R: mx.array) -> mx.array:
    """x R, block by block, in float32 and back in the dtype of x: half precision has few numbers around 1.

    Args:
        x: ``(..., in)``.
        R: ``(in / b, b, b)``, or ``(1, b, b)`` for all blocks alike.
    """
    blocks = x.astype(mx.float32).reshape(-1, x.shape[-1] // R.shape[-1], R.shape[-1]).swapaxes(0, 1)
    return (blocks @ R).swapaxes(0, 1).reshape(x.shape).astype(x.dtype)
