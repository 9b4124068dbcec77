"""Adapters whose update of a weight is W + s B A: their updates added, as one LoRA, or one QA-LoRA.

q, k and v are thirds of the fused qkv's rows, as in an adapter's file; so is LoRA that counts from its start
(PiSSA, OLoRA), whose initial factors are taken away, an update of twice the rank on the weights as they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mlx_peft.adaptation.combining.part import Part, numbered
from mlx_peft.adaptation.combining.rules import Array, combined
from mlx_peft.adaptation.terms import TERMS, THIRDS, Plain
from mlx_peft.config.combination import Combination
from mlx_peft.config.methods import (
    AdaLoRA,
    FacT,
    LoHa,
    LoKr,
    LoRA,
    MethodConfig,
    MiSS,
    PVeRA,
    QALoRA,
    RandLoRA,
    VeRA,
)
from mlx_peft.config.quantization import Quantization
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.sites import LAYERS, Site


class Factors(NamedTuple):
    """A layer's update, s B A: A ``(r, in)``, or ``(r, in / g)`` where it reads sums of groups; B ``(out, r)``."""

    A: Array
    B: Array
    s: float


Update = dict[str, Factors]
"""By the path of a layer."""

Own = list[tuple[int, Factors, float]]
"""What the adapters have of one layer: the number of each, its factors and its weight."""


def _lora(method: LoRA, architecture: Architecture, tensors: Tensors) -> Update:
    found: Update = {}
    for site in method.sites(architecture):
        A, B = tensors[f"{site.path}.lora_A"], _whole(site, tensors[f"{site.path}.lora_B"])
        if method.start_kept is not None:
            A0, B0 = (tensors[f"{site.path}.{name}"] for name in method.start_kept)
            A, B = np.concatenate([A, A0]), np.concatenate([B, -_whole(site, B0)], axis=1)
        found[site.path] = Factors(A, B, method.scaling_of(site.path))
    return found


def _qalora(method: QALoRA, architecture: Architecture, tensors: Tensors) -> Update:
    """A reads sums of groups; where it reads their means, s is divided by how many inputs these have."""
    found: Update = {}
    for site in method.sites(architecture):
        A, s = tensors[f"{site.path}.lora_A"], method.alpha / method.rank
        s = s / (site.inputs // A.shape[1]) if method.pool == "avg" else s
        found[site.path] = Factors(A, _whole(site, tensors[f"{site.path}.lora_B"]), s)
    return found


def _of_terms(
    method: AdaLoRA | VeRA | FacT | LoHa | LoKr | MiSS | RandLoRA | PVeRA, architecture: Architecture, tensors: Tensors
) -> Update:
    """Those of methods whose A and B are made of other tensors, with all factors in B."""
    layers = TERMS[type(method)](method, architecture, tensors, _Unasked()).layers
    return {path: _joined(terms) for path, terms in layers.items()}


class _Unasked(Plain):
    """The base, of which these methods' terms need nothing."""

    def dense(self, path: str) -> Array:
        raise NotImplementedError

    def vector(self, name: str) -> Array | None:
        raise NotImplementedError


def _joined(terms: Mapping[str, Array]) -> Factors:
    """The factors of a layer whose thirds may each have their own; without triplets that are zero."""
    if "A" in terms:
        A, B = terms["A"].T, terms["B"].T
    else:
        own = [third for third in THIRDS if f"A{third}" in terms]
        A = np.concatenate([terms[f"A{third}"].T for third in own])
        B = np.concatenate([_in_third(terms[f"B{third}"].T, third) for third in own], axis=1)
    alive = A.any(axis=1) & B.any(axis=0)
    return Factors(A[alive], B[:, alive], 1.0)


def _in_third(B: Array, third: str) -> Array:
    whole = np.zeros((len(THIRDS), *B.shape), np.float32)
    whole[THIRDS.index(third)] = B
    return whole.reshape(-1, B.shape[1])


def _whole(site: Site, B: Array) -> Array:
    """A layer's B ``(out, count r)``, each part's in its own rows and columns; that of a whole layer as it is."""
    if not site.parts:
        return B
    rank = B.shape[1]
    whole = np.zeros((site.outputs, site.count * rank), np.float32)
    for i, (rows, own) in enumerate(zip(site.rows, np.split(B, site.count), strict=True)):
        whole[rows, i * rank : (i + 1) * rank] = own
    return whole


UPDATES: Mapping[type[MethodConfig], Callable[[Any, Architecture, Tensors], Update]] = {
    LoRA: _lora,
    QALoRA: _qalora,
    AdaLoRA: _of_terms,
    VeRA: _of_terms,
    FacT: _of_terms,
    LoHa: _of_terms,
    LoKr: _of_terms,
    MiSS: _of_terms,
    RandLoRA: _of_terms,
    PVeRA: _of_terms,
}
"""How each method says what it adds to the weights."""


def combine(
    parts: Sequence[Part],
    combination: Combination,
    architecture: Architecture,
    quantization: Quantization | None,
    kind: type[LoRA] | type[QALoRA] = LoRA,
) -> tuple[LoRA | QALoRA, Tensors]:
    """One adapter of a ``kind``, with s = 1: of the layers that any part has, in each block that any has.

    All layers have the same rank; what has a smaller one is filled up with zeros.

    Raises:
        UserError: the ranks differ, where factors are added one to one.
    """
    updates = [UPDATES[type(part.method)](part.method, architecture, part.tensors) for part in parts]
    weights = [part.weight for part in parts]
    layers = {path: None for update in updates for path in update}
    way = _stacked if combination.how == "cat" else _factorised if combination.factorises else _one_to_one
    ranks = [max(len(factors.A) for factors in update.values()) for update in updates]
    rank = sum(ranks) if combination.how == "cat" else combination.rank or max(ranks)
    rank = max(rank, 1)  # of nothing but zeros
    method = kind(rank=rank, alpha=rank, **_spanning(layers, architecture))
    tensors = {name: np.zeros(shape, np.float32) for name, shape in method.added(architecture, quantization).items()}
    for path in layers:
        own = [(i, update[path], weights[i]) for i, update in enumerate(updates) if path in update]
        A, B = way(path, own, combination, rank)
        tensors[f"{path}.lora_A"][: len(A)], tensors[f"{path}.lora_B"][:, : len(A)] = A, B
    return method, tensors


def combine_grouped(
    parts: Sequence[Part], combination: Combination, architecture: Architecture, quantization: Quantization | None
) -> tuple[LoRA | QALoRA, Tensors]:
    """As ``combine``, of updates that are the same within a group of a quantised weight: it stays one of these."""
    return combine(parts, combination, architecture, quantization, QALoRA)


def _stacked(path: str, own: Own, combination: Combination, rank: int) -> tuple[Array, Array]:
    """A = [w_1 s_1 A_1; w_2 s_2 A_2; ...], B = [B_1, B_2, ...]: their product is the sum, exactly."""
    A = [factors.A * np.float32(weight) * np.float32(factors.s) for _, factors, weight in own]
    return np.concatenate(A), np.concatenate([factors.B for _, factors, _ in own], axis=1)


def _factorised(path: str, own: Own, combination: Combination, rank: int) -> tuple[Array, Array]:
    """Whole updates s_i B_i A_i combined, and the leading singular triplets of what results: A = V^T, B = U S."""
    updates = [(factors.B @ factors.A) * np.float32(factors.s) for _, factors, _ in own]
    stream = numbered(combination.seed, [i for i, _, _ in own], path)
    total = combined(updates, [weight for *_, weight in own], combination, stream)
    U, S, V = np.linalg.svd(total.astype(np.float64), full_matrices=False)
    U, S, V = U[:, :rank], S[:rank], V[:rank]
    largest = np.abs(V).argmax(axis=1)  # which sign a triplet has is anybody's choice: as in PiSSA's
    signs = np.where(V[np.arange(len(V)), largest] < 0, -1, 1)
    return (V * signs[:, None]).astype(np.float32), (U * S * signs).astype(np.float32)


def _one_to_one(path: str, own: Own, combination: Combination, rank: int) -> tuple[Array, Array]:
    """All A as one and all B as one, each weighted by the root of |w_i s_i|, whose sign goes to A.

    It is PEFT's, and not the sum of the updates: the product of two sums has the products of each A with the others' B.
    """
    if len(ranks := {len(factors.A) for _, factors, _ in own}) > 1:
        raise UserError(
            f"{path} has the ranks {' and '.join(map(str, sorted(ranks)))} in these adapters, and {combination.how} "
            "combines A with A and B with B: take cat, or a way that ends in svd, which take any ranks",
            arguments=("how",),
        )
    scaled = [weight * factors.s for _, factors, weight in own]
    roots, numbers = [math.sqrt(abs(one)) for one in scaled], [i for i, _, _ in own]
    signed = [math.copysign(root, one) for root, one in zip(roots, scaled, strict=True)]
    seed = combination.seed
    return (
        combined([f.A for _, f, _ in own], signed, combination, numbered(seed, numbers, f"{path}.lora_A")),
        combined([f.B for _, f, _ in own], roots, combination, numbered(seed, numbers, f"{path}.lora_B")),
    )


def _spanning(layers: Mapping[str, None], architecture: Architecture) -> dict[str, Any]:
    """The targets and blocks of these layers; all blocks are None."""
    found = {LAYERS[path.rpartition(".")[2]] for path in layers}
    blocks = sorted({int(path.split(".")[1]) for path in layers})
    return {
        "targets": tuple(target for target in dict.fromkeys(LAYERS.values()) if target in found),
        "blocks": None if blocks == list(range(architecture.depth)) else tuple(blocks),
    }
