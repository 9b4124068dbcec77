"""The terms of methods whose update of a weight has a low rank."""

from __future__ import annotations

import numpy as np

from mlx_peft.adaptation.factors import ungrouped
from mlx_peft.adaptation.terms.term import Array, Layers, Plain, Terms, factor_pairs, held, named_pairs
from mlx_peft.config.methods import AdaLoRA, FacT, LoRA, PVeRA, QALoRA, RepAdapter, VeRA
from mlx_peft.core.border import Tensors
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.sites import Site

TINY = np.finfo(np.float32).tiny
"""This stands for the norm of a row of zeros, by which nothing can be divided."""


def lora(method: LoRA, architecture: Architecture, tensors: Tensors, base: Plain) -> Terms:
    """LoRA; what counts from its start takes the first factors away. DoRA's gain is c, less what c does to the bias."""
    found: Layers = {}
    for site in method.sites(architecture):
        s = method.scaling_of(site.path)
        pairs = factor_pairs(site, tensors[f"{site.path}.lora_A"], s * tensors[f"{site.path}.lora_B"])
        if method.start_kept is not None:
            A0, B0 = (tensors[f"{site.path}.{name}"] for name in method.start_kept)
            first = factor_pairs(site, A0, -s * B0)
            pairs = [
                (np.concatenate([A, A0], axis=1), np.concatenate([B, B0]))
                for (A, B), (A0, B0) in zip(pairs, first, strict=True)
            ]
        found[site.path] = named_pairs(site, pairs)
        if method.dora:
            c = _direction(site, pairs, tensors[f"{site.path}.lora_magnitude_vector"], base.dense(site.path))
            bias = base.vector(f"{site.path}.bias")
            found[site.path] |= {"gain": c} if bias is None else {"gain": c, "shift": (1 - c) * bias}
    return Terms(found)


def _direction(site: Site, pairs: list[tuple[Array, Array]], magnitudes: Array, weight: Array) -> Array:
    """DoRA's c ``(out,)``: m over the norm of each row of W + s B A; 1 where nothing is adapted."""
    c = np.ones(site.outputs, np.float32)
    m = np.split(magnitudes, site.count)
    for rows, (A, B), own in zip(site.rows, pairs, m, strict=True):
        norms = np.linalg.norm(weight[rows] + (A @ B).T, axis=1)
        c[rows] = own / np.maximum(norms, TINY)
    return c


def qalora(method: QALoRA, architecture: Architecture, tensors: Tensors, base: Plain) -> Terms:
    """G, for A reads the sums of groups; where it reads their means, B is divided by how many inputs these have."""
    found: Layers = {}
    for site in method.sites(architecture):
        A, B = tensors[f"{site.path}.lora_A"], method.alpha / method.rank * tensors[f"{site.path}.lora_B"]
        B = B / (site.inputs // A.shape[1]) if method.pool == "avg" else B
        found[site.path] = named_pairs(site, factor_pairs(site, A, B), "GB")
    return Terms(found)


def adalora(method: AdaLoRA, architecture: Architecture, tensors: Tensors, base: Plain) -> Terms:
    scaling = method.alpha / (method.init_rank + 1e-5)
    found: Layers = {}
    for site in method.sites(architecture):
        A, B, E = (tensors[f"{site.path}.lora_{name}"] for name in "ABE")
        found[site.path] = named_pairs(site, factor_pairs(site, A * E, scaling * B))
    return Terms(found)


def vera(method: VeRA, architecture: Architecture, tensors: Tensors, base: Plain) -> Terms:
    """B with both vectors in it. A is the same array at all layers of one width."""
    return _projected(method, architecture, tensors)


def pvera(method: PVeRA, architecture: Architecture, tensors: Tensors, base: Plain) -> Terms:
    """As VeRA's, of the means, which are what it answers with: A's upper half, and lambda_d's."""
    return _projected(method, architecture, tensors)


def _projected(method: VeRA | PVeRA, architecture: Architecture, tensors: Tensors) -> Terms:
    word, rank = method.name, method.rank
    A, B = tensors[f"shared.{word}_A"][:rank], tensors[f"shared.{word}_B"]
    narrowed = {width: held(A[:, :width].T) for width in {site.inputs for site in method.sites(architecture)}}
    found: Layers = {}
    for site in method.sites(architecture):
        vectors = (np.split(tensors[f"{site.path}.{word}_lambda_{name}"], site.count) for name in "db")
        scaled = [held((b[:, None] * B[: len(b)] * d[:rank]).T) for d, b in zip(*vectors, strict=True)]
        found[site.path] = named_pairs(site, [(narrowed[site.inputs], one) for one in scaled])
    return Terms(found)


def fact(method: FacT, architecture: Architecture, tensors: Tensors, base: Plain) -> Terms:
    """s U Sigma_j V^T of each of a layer's weights, which lie below one another, or beside in a wide layer."""
    U, V, C, P = (tensors[f"shared.fact_{name}"] for name in "UVCP")
    found: Layers = {}
    for site, weights in method.layers(architecture):
        cores = (P[weights.start : weights.stop] @ C.reshape(len(C), -1)).reshape(-1, *C.shape[1:])
        if site.inputs > len(U):
            A, B = (U @ cores).reshape(-1, U.shape[1]), V.T
        else:
            A, B = U, (V @ cores.transpose(0, 2, 1)).reshape(-1, V.shape[1]).T
        found[site.path] = {"A": held(A[: site.inputs]), "B": held(method.scale * B[:, : site.outputs])}
    return Terms(found)


def repadapter(method: RepAdapter, architecture: Architecture, tensors: Tensors, base: Plain) -> Terms:
    """W (x + s up(down(x))) of each layer W that reads a bottleneck: A is down, and W is in B and in the shift."""
    found: Layers = {}
    for path, readers in method.readers(architecture).items():
        down, bias, up, up_bias = (
            tensors[f"{path}.adapter_{name}"] for name in ("down.weight", "down.bias", "up.weight", "up.bias")
        )
        up = method.scale * ungrouped(up, method.groups)
        for site in readers:
            weight = base.dense(site.path)
            shift = weight @ (up @ bias + method.scale * up_bias)
            found[site.path] = {"A": held(down.T), "B": held((weight @ up).T), "shift": held(shift)}
    return Terms(found)
