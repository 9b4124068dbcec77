"""EVA: A from the directions in which what enters each layer varies most, and ranks dealt out by how much that is.

The leading principal components of a layer's inputs are followed from batch to batch; they are A's rows, and B = 0.
Each has a share of its layer's variance. All shares of all layers are put in order, and as many of the largest are kept
as the ranks add up to, at most rho times its rank in one layer. s stays what it was, whatever a layer's rank becomes.
Paischer et al. 2024 (arXiv 2410.07170), section 3; the components are followed as by Ross et al. 2008, section 2.

What enters a layer is what the model computes: behind attention in the last block, the tokens that the head reads. A
layer whose components have turned by less than arccos(tau) in a batch is not looked at again, as long as its rank does
not grow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from mlx_peft.config.methods import LoRA
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.sites import Site

Array = NDArray[np.float64]

LEAST = float(np.finfo(np.float32).eps) ** 0.5
"""Singular values that are so many times less than the first are rounding: a Gram matrix in float32 has no smaller."""


class Components:
    """The leading principal components of rows that come by in batches.

    With n rows seen, of mean m, singular values S and components V (S V for the rows less their mean), a batch X of k
    rows and of mean u becomes the leading components of [S V; X - u; sqrt(n k / (n + k)) (m - u)]. Each one's sign is
    such that its largest element is positive.

    Args:
        count: how many; at most the rows' width.

    Attributes:
        vectors: ``(count, width)``, orthonormal; None before the first batch.
        values: their singular values.
        shares: what each has of the variance of all rows.
        settled: which of them have turned by less than arccos(tau) in the last batch.
    """

    def __init__(self, count: int, tau: float) -> None:
        self.count, self.tau = count, tau
        self.vectors: Array | None = None
        self.values, self.shares = np.zeros(count), np.zeros(count)
        self.settled = np.zeros(count, bool)
        self._rows, self._mean, self._scatter = 0, np.zeros(0), 0.0
        self._waiting: NDArray[np.float32] | None = None

    def look(self, rows: NDArray[np.float32]) -> None:
        """Takes a batch, ``(k, width)``. One of fewer rows than there are components waits for the next."""
        rows = rows if self._waiting is None else np.concatenate([self._waiting, rows])
        self._waiting = rows.copy() if len(rows) < self.count else None
        if self._waiting is not None:
            return
        mean = rows.mean(axis=0, dtype=np.float64)
        centred = rows - mean.astype(np.float32)
        gram = (centred.T @ centred).astype(np.float64)
        scatter, before, number = float(gram.trace()), self.vectors, self._rows + len(rows)
        if before is None:
            self._mean, self._scatter = mean, scatter
        else:
            step = mean - self._mean
            moved = self._rows * len(rows) / number
            gram += (before.T * self.values**2) @ before + moved * np.outer(step, step)
            self._scatter += scatter + moved * float(step @ step)
            self._mean = self._mean + step * (len(rows) / number)
        self._rows = number
        self.vectors, self.values = leading(gram, self.count)
        self.shares = self.values**2 / max(self._scatter, np.finfo(np.float64).tiny)
        if before is not None:
            self.settled = (self.vectors * before).sum(axis=1) >= self.tau


def widest(site: Site) -> int:
    """The largest rank that an update of a layer, or of its part, can have."""
    return min(site.adapted // site.count, site.inputs)


def leading(gram: Array, count: int) -> tuple[Array, Array]:
    """The leading eigenvectors of a Gram matrix, one a row, and the roots of their values."""
    from scipy.linalg import eigh  # a third of a second that only this start is worth

    width = len(gram)
    values, vectors = eigh(gram, subset_by_index=[width - count, width - 1])
    found = vectors.T[::-1]
    largest = np.abs(found).argmax(axis=1)
    signs = np.where(found[np.arange(count), largest] < 0, -1, 1)
    return found * signs[:, None], np.sqrt(np.maximum(values[::-1], 0))


class Explained:
    """What enters the layers of a method, as it comes by, and the ranks and factors that follow.

    Args:
        method: LoRA with ``init: eva``; its ranks are those that are dealt out.
    """

    def __init__(self, method: LoRA, architecture: Architecture) -> None:
        self.method = method
        self.sites = {site.path: site for site in method.sites(architecture)}
        self.components = {
            path: Components(min(round(method.rank_of(path) * method.eva.rho), widest(site)), method.eva.tau)
            for path, site in self.sites.items()
        }
        self.ranks = {path: each.count for path, each in self.components.items()}
        self.active = set(self.sites)

    @property
    def settled(self) -> bool:
        """Whether no layer needs another batch."""
        return not self.active

    def __call__(self, point: str, operand: NDArray[np.float32]) -> None:
        """Looks at what enters a product, if it is a layer's that needs it: ``(..., width)``."""
        if point in self.active:
            self.components[point].look(operand.reshape(-1, operand.shape[-1]))

    def deal(self) -> None:
        """Ranks by what was seen so far, after each batch, and which layers are to be looked at again."""
        if all(each.vectors is not None for each in self.components.values()):
            budget = sum(self.method.rank_of(path) * site.count for path, site in self.sites.items())
            costs = {path: site.count for path, site in self.sites.items()}
            self.ranks = dealt({path: each.shares for path, each in self.components.items()}, costs, budget)
        self.active = {path for path, each in self.components.items() if not each.settled[: self.ranks[path]].all()}

    def result(self) -> tuple[LoRA, Tensors]:
        """The method with its ranks, and A and B by name.

        Raises UserError where fewer rows came by than there are components.
        """
        if short := [path for path, each in self.components.items() if each.vectors is None]:
            raise UserError(
                f"method.init: eva follows {self.components[short[0]].count} directions of what enters {short[0]}, and "
                "all batches together have fewer tokens: raise data.batch_size or method.eva.batches, or lower "
                "method.rank or method.eva.rho"
            )
        method = with_ranks(self.method, self.ranks)
        tensors: Tensors = {}
        for path, site in self.sites.items():
            if rank := self.ranks[path]:
                A = self._rows_of_a(path, rank)
                tensors[f"{path}.lora_A"] = np.tile(A, (site.count, 1))
                tensors[f"{path}.lora_B"] = np.zeros((site.adapted, rank), np.float32)
        return method, tensors

    def _rows_of_a(self, path: str, rank: int) -> NDArray[np.float32]:
        each = self.components[path]
        assert each.vectors is not None
        A = each.vectors[:rank]
        if self.method.eva.whiten:
            least = LEAST * each.values[0]
            A = A / np.sqrt(np.maximum(each.values[:rank, None], least)) if least else A
        return np.ascontiguousarray(A, np.float32)


def dealt(shares: Mapping[str, Array], costs: Mapping[str, int], budget: int) -> dict[str, int]:
    """How many of each layer's components are among the largest of all that a budget is enough for.

    Args:
        shares: of the variance, in falling order, by layer; of equal ones the first layer's is first.
        costs: what one component of a layer costs: 1, or how many of q, k and v have an A of their own.
    """
    order = sorted((-share, number, path) for number, path in enumerate(shares) for share in shares[path].tolist())
    ranks = dict.fromkeys(shares, 0)
    for _, _, path in order:
        if costs[path] > budget:
            break
        ranks[path] += 1
        budget -= costs[path]
    return ranks


def with_ranks(method: LoRA, ranks: Mapping[str, int]) -> LoRA:
    """The method with a rank for each layer, by its whole name, and the scaling that the layer had.

    Layers that it leaves as they are, by a rank of 0, it goes on to leave so.
    """
    left_out = {key: rank for key, rank in method.rank_pattern.items() if rank == 0}
    otherwise = method.model_copy(update={"rank_pattern": left_out})
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    for path, rank in ranks.items():
        if rank != otherwise.rank_of(path):
            rank_pattern[re.escape(path)] = rank
        alpha = method.scaling_of(path) * (rank**0.5 if method.rslora else rank)
        if rank and alpha != method.alpha:
            alpha_pattern[re.escape(path)] = alpha
    return method.model_copy(update={"rank_pattern": rank_pattern | left_out, "alpha_pattern": alpha_pattern})
