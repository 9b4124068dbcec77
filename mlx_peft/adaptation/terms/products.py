"""The terms of methods whose update of a weight is another product than B A, as the A and B that make the same."""

from __future__ import annotations

import numpy as np

from mlx_peft.adaptation.terms.term import Array, Layers, Plain, Terms, held, named_pairs
from mlx_peft.config.methods import LoHa, LoKr, MiSS, RandLoRA
from mlx_peft.core.border import Tensors
from mlx_peft.vit.architecture import Architecture


def loha(method: LoHa, architecture: Architecture, tensors: Tensors, base: Plain) -> Terms:
    """Column i of A_1 times column j of A_2, and row i of B_1 times row j of B_2, for each i and j.

    Where these are more than the lesser width, the product itself, and an identity.
    """
    found: Layers = {}
    for site in method.sites(architecture):
        names = ("w1_a", "w1_b", "w2_a", "w2_b")
        factors = (np.split(tensors[f"{site.path}.hada_{name}"], site.count) for name in names)
        pairs = []
        for a1, b1, a2, b2 in zip(*factors, strict=True):
            if method.rank**2 <= min(len(a1), site.inputs):
                A = (b1[:, None] * b2[None]).reshape(-1, site.inputs)
                B = (a1[:, :, None] * a2[:, None]).reshape(len(a1), -1)
            else:
                B, A = _split((a1 @ b1) * (a2 @ b2))
            pairs.append((held(A.T), held(method.scaling * B.T)))
        found[site.path] = named_pairs(site, pairs)
    return Terms(found)


def lokr(method: LoKr, architecture: Architecture, tensors: Tensors, base: Plain) -> Terms:
    """The Kronecker product of two products is that of their first factors, times that of their second ones."""
    found: Layers = {}
    for site in method.sites(architecture):
        (left1, right1), (left2, right2) = (_factors(f"{site.path}.lokr_{name}", tensors) for name in ("w1", "w2"))
        pair = held(np.kron(right1, right2).T), held(method.scaling * np.kron(left1, left2).T)
        found[site.path] = named_pairs(site, [pair])
    return Terms(found)


def _factors(name: str, tensors: Tensors) -> tuple[Array, Array]:
    """The factors of a trained matrix: its own, or else those of ``_split``."""
    return _split(tensors[name]) if name in tensors else (tensors[f"{name}_a"], tensors[f"{name}_b"])


def _split(whole: Array) -> tuple[Array, Array]:
    """A matrix as a product of two: itself and the identity of its shorter side."""
    rows, columns = whole.shape
    eye = np.eye(min(rows, columns), dtype=np.float32)
    return (whole, eye) if columns <= rows else (eye, whole)


def miss(method: MiSS, architecture: Architecture, tensors: Tensors, base: Plain) -> Terms:
    """A adds up the pieces of the inputs; it is the same array at all layers of one width."""
    eye = np.eye(method.rank, dtype=np.float32)
    widths = {site.inputs for site in method.sites(architecture)}
    adding = {width: held(np.tile(eye, (-(-width // method.rank), 1))[:width]) for width in widths}
    found: Layers = {}
    for site in method.sites(architecture):
        D = tensors[f"{site.path}.miss_block"]
        own = np.split(np.tile(D, (1, site.adapted // D.shape[1])), site.count, axis=1)
        found[site.path] = named_pairs(site, [(adding[site.inputs], held(one)) for one in own])
    return Terms(found)


def randlora(method: RandLoRA, architecture: Architecture, tensors: Tensors, base: Plain) -> Terms:
    """What is trained is in that of the smaller width; the other is the same array at all layers of one size."""
    A, B = tensors["shared.randlora_A"], tensors["shared.randlora_B"]
    random: dict[tuple[int, int], Array] = {}
    found: Layers = {}
    for site in method.sites(architecture):
        scale, gamma = (tensors[f"{site.path}.randlora_{name}"] for name in ("lambda", "gamma"))
        count, width = gamma.shape
        size, height = (site.inputs, site.outputs), max(site.inputs, site.outputs)
        trained = (scale[:, :, None] * A[:, :, :width] * gamma).reshape(-1, width)
        if size not in random:
            own = method.scaling * B[:height, :count].reshape(height, -1)
            random[size] = held(own.T if width == site.inputs else own)
        pair = (held(trained.T), random[size]) if width == site.inputs else (random[size], held(trained))
        found[site.path] = named_pairs(site, [pair])
    return Terms(found)
