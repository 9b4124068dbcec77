"""What a low-rank update starts from where the weight itself decides, in NumPy, so that both backends start equal."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlx_peft.config.methods import LoRA
from mlx_peft.vit.initial import kaiming_uniform
from mlx_peft.vit.sites import Site

Matrix = NDArray[np.float32]


def initial_factors(method: LoRA, site: Site, weight: Matrix, seed: int) -> tuple[Matrix, Matrix]:
    """LoRA's first A ``(parts r, in)`` and B ``(outputs adapted, r)``; ``weight`` is the layer's, float32 (out, in)."""
    rank, count = method.rank_of(site.path), max(len(site.parts), 1)
    if method.init == "pissa":
        pairs = [principal(weight[rows], rank, method.scaling_of(site.path)) for rows in site.rows]
        return np.concatenate([A for A, _ in pairs]), np.concatenate([B for _, B in pairs])
    A = kaiming_uniform((rank * count, site.inputs), site.inputs, seed, f"{site.path}.lora_A")
    return A, np.zeros((site.adapted, rank), np.float32)


def principal(weight: Matrix, rank: int, scaling: float) -> tuple[Matrix, Matrix]:
    """PiSSA's A = S^(1/2) V^T / s^(1/2) and B = U S^(1/2) / s^(1/2) of the leading singular triplets: s B A is theirs.

    The triplets come from the smaller of the two Gram matrices, whose size is the lesser width; in float64, what that
    loses is far below float32's rounding. Each one's sign is such that the largest element of its row of A is positive.

    Args:
        weight: ``(out, in)``.
        rank: how many triplets; at most the lesser width.
        scaling: s.

    Returns:
        A ``(rank, in)`` and B ``(out, rank)``, float32, in C order.
    """
    W = weight.astype(np.float64)
    if len(W) > W.shape[1]:
        B, A = principal(weight.T, rank, scaling)
        A, B = A.T, B.T
    else:
        values, vectors = np.linalg.eigh(W @ W.T)
        S, U = np.sqrt(np.maximum(values[::-1][:rank], 0)), vectors[:, ::-1][:, :rank]
        root = np.sqrt(S / scaling)
        # A row is u^T W / sqrt(s S), which is 0 / 0 where the weight has a lower rank.
        A = (U.T @ W) * np.divide(1, root * scaling, out=np.zeros_like(root), where=S[0] * 1e-12 < S)[:, None]
        B = U * root
    largest = np.abs(A).argmax(axis=1)
    signs = np.where(A[np.arange(rank), largest] < 0, -1, 1)
    # In C order: of a weight that is higher than wide they are transposes, and whoever takes their memory keeps that.
    return np.ascontiguousarray(A * signs[:, None], np.float32), np.ascontiguousarray(B * signs, np.float32)


def row_norms(weight: Matrix) -> Matrix:
    """The Euclidean norm of each row, float32: DoRA's first magnitudes."""
    norms: Matrix = np.linalg.norm(weight.astype(np.float64), axis=1).astype(np.float32)
    return norms
