"""What LoRA's A and B start from, in NumPy, so that both backends start equal."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from mlx_peft.config.methods import LoRA
from mlx_peft.config.methods.inits import InitName
from mlx_peft.vit.initial import generator, kaiming_uniform
from mlx_peft.vit.sites import Site

Matrix = NDArray[np.float32]


Factors = tuple[Matrix, Matrix]


def initial_factors(method: LoRA, site: Site, weight: Matrix, seed: int) -> Factors:
    """The first A ``(parts r, in)`` and B ``(outputs adapted, r)``; ``weight`` is the layer's, float32 (out, in)."""
    return STARTS[method.init](method, site, weight, seed)


def kaiming(method: LoRA, site: Site, weight: Matrix, seed: int) -> Factors:
    """A ~ U(-1/sqrt(in), 1/sqrt(in)), which is Kaiming uniform with a = sqrt 5, and B = 0."""
    rank = method.rank_of(site.path)
    A = kaiming_uniform((rank * site.count, site.inputs), site.inputs, seed, f"{site.path}.lora_A")
    return A, np.zeros((site.adapted, rank), np.float32)


def pissa(method: LoRA, site: Site, weight: Matrix, seed: int) -> Factors:
    """The leading singular triplets of each part's own rows: see ``principal``."""
    rank, s = method.rank_of(site.path), method.scaling_of(site.path)
    return stacked([principal(weight[rows], rank, s) for rows in site.rows])


def olora(method: LoRA, site: Site, weight: Matrix, seed: int) -> Factors:
    """The first columns of Q and rows of R of each part's own rows: see ``orthonormal``."""
    return stacked([orthonormal(weight[rows], method.rank_of(site.path)) for rows in site.rows])


def orthogonal(method: LoRA, site: Site, weight: Matrix, seed: int) -> Factors:
    """Drawn halves for each part, so that B A = 0: see ``halves``. Each part draws S, X and Y in this order."""
    rank, random = method.rank_of(site.path), generator(seed, f"{site.path}.lora_A")
    shapes = [((rank, rank), (site.inputs, rank // 2), (rank // 2, site.adapted // site.count))] * site.count
    return stacked([halves(*map(random.standard_normal, own)) for own in shapes])


STARTS: Mapping[InitName, Callable[[LoRA, Site, Matrix, int], Factors]] = {
    "kaiming": kaiming,
    "pissa": pissa,
    "olora": olora,
    "orthogonal": orthogonal,
    "loftq": kaiming,
    "eva": kaiming,
}
"""The equations of the starts that ``config.methods.inits`` lists."""


def stacked(pairs: list[Factors]) -> Factors:
    """The factors of a layer's parts, one above the other."""
    return np.concatenate([A for A, _ in pairs]), np.concatenate([B for _, B in pairs])


def orthonormal(weight: Matrix, rank: int) -> Factors:
    """OLoRA's A = R[:r] and B = Q[:, :r] of W = Q R, whose product is what projecting W onto B's columns leaves of it.

    The layer goes on with W - s B A. The first r columns of Q are those of W's first r columns, and R = Q^T W, so that
    W as a whole needs no factors; in float64. Signs are as Householder's reflections have them in LAPACK, and so in
    NumPy, PyTorch and PEFT. Buyukakyuz 2024 (arXiv 2406.01775), section 3.

    Args:
        weight: ``(out, in)``.
        rank: r; at most the lesser width.

    Returns:
        A ``(r, in)`` and B ``(out, r)``, float32.
    """
    W = weight.astype(np.float64)
    Q = np.linalg.qr(W[:, :rank])[0]
    return (Q.T @ W).astype(np.float32), np.ascontiguousarray(Q, np.float32)


def halves(S: NDArray[np.float64], X: NDArray[np.float64], Y: NDArray[np.float64]) -> Factors:
    """A = (X Q1)^T / 10 and B = Y^T Q2 / 10; Q1 has every other row of S's Q from the first on, Q2 the others.

    The rows of an orthogonal Q are orthogonal, so B A = Y^T Q2 Q1^T X^T / 100 = 0, and neither A nor B is. As PEFT's
    ``init_lora_weights="orthogonal"``, after Datta 2024 (https://datta0.github.io/posts/rethink-lora-init).

    Args:
        S: ``(r, r)`` from N(0, 1), r even.
        X, Y: likewise ``(in, r / 2)`` and ``(r / 2, out)``.

    Returns:
        A ``(r, in)`` and B ``(out, r)``, float32.
    """
    Q = np.linalg.qr(S)[0]
    A, B = (X @ Q[0::2]).T / 10, Y.T @ Q[1::2] / 10
    return np.ascontiguousarray(A, np.float32), np.ascontiguousarray(B, np.float32)


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


def ungrouped(up: Matrix, groups: int) -> Matrix:
    """A layer in groups ``(out, in / groups)`` as a plain one ``(out, in)``: zeros where a group does not read."""
    height, width = len(up) // groups, up.shape[1]
    whole = np.zeros((len(up), groups * width), np.float32)
    for group in range(groups):
        rows = slice(group * height, (group + 1) * height)
        whole[rows, group * width : (group + 1) * width] = up[rows]
    return whole


def row_norms(weight: Matrix) -> Matrix:
    """The Euclidean norm of each row, float32: DoRA's first magnitudes."""
    norms: Matrix = np.linalg.norm(weight.astype(np.float64), axis=1).astype(np.float32)
    return norms
