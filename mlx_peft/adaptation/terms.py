"""What an adapter does to each layer, in terms that the rows of one batch can each have of their own.

A layer y = f(x) becomes

    y = gain * (f(into * x) + n(x) * weight + (x A + g(x) G) B) + shift

n(x) is a norm's input normalised, before its own weight and bias; g(x) the sums of consecutive inputs, a group of a
quantised weight each; A, G and B may be of one third of a fused qkv's outputs.
A block gets prompts in front of it, and beside its MLP relu(norm2(x) down + down_bias) up + up_bias. Each is NumPy and
float32, so that both backends compute the same from the same: what a method's own layer does, without dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from mlx_peft.config.methods import (
    IA3,
    SSF,
    VPT,
    AdaLoRA,
    AdaptFormer,
    BitFit,
    FacT,
    LayerNorm,
    Linear,
    LoRA,
    MethodConfig,
    QALoRA,
    VeRA,
)
from mlx_peft.config.methods.selective import Selective
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.parameters import is_head, last
from mlx_peft.vit.shapes import shapes
from mlx_peft.vit.sites import LAYERS, PARTS, Site

Array = np.ndarray
"""Float32."""

Layers = dict[str, dict[str, Array]]
"""Terms by the path of a layer or a block, and by their names."""

TINY = np.finfo(np.float32).tiny
"""This stands for the norm of a row of zeros, by which nothing can be divided."""


class Entering(NamedTuple):
    """What prompts do at one block: the rows of a batch must be alike in this, for they have equally many tokens.

    Attributes:
        block: its path.
        tokens: how many enter.
        leave: whether they leave behind it.
    """

    block: str
    tokens: int
    leave: bool


@dataclass(frozen=True)
class Terms:
    """An adapter without its head.

    Attributes:
        layers: ``into`` ``(in,)``; ``A`` ``(in, r)`` or ``G`` ``(in / g, r)``, and ``B`` ``(r, out)``, with all factors
            in it; ``A_q``, ``B_q`` and so on of a third of the outputs; ``gain``, ``shift``, ``weight`` ``(out,)``. Of
            a block ``prompts`` ``(p, dim)``; ``down`` ``(dim, b)``, ``down_bias``, ``up`` ``(b, dim)``, ``up_bias``.
        prompts: at the blocks that some enter, or leave.
    """

    layers: Layers
    prompts: tuple[Entering, ...] = ()


class Plain(Protocol):
    """The base, as far as an adapter's terms count from it."""

    def dense(self, path: str) -> Array:
        """A linear layer's weight, ``(out, in)``; of codes, what they stand for."""

    def vector(self, name: str) -> Array | None:
        """A bias, or a norm's weight, by its name; None where the layer has none."""


def places(architecture: Architecture) -> list[str]:
    """The paths of all layers that may have terms: those with a weight, heads apart."""
    names = (name for name in shapes(architecture, num_classes=1) if not is_head(name))
    return [name.removesuffix(".weight") for name in names if name.endswith(".weight")]


def terms(method: MethodConfig, architecture: Architecture, tensors: Tensors, base: Plain) -> Terms:
    """The terms of an adapter, whose tensors are those that ``adapter_shapes`` lists.

    Raises UserError, with the method's name, where rows cannot each have one of their own.
    """
    if method.unmixed is not None:
        raise UserError(f"method {method.name}: a batch cannot mix its adapters: {method.unmixed}")
    return TERMS[type(method)](method, architecture, tensors, base)


def _linear(method: Linear, architecture: Architecture, tensors: Tensors, base: Plain) -> Terms:
    return Terms({})


def _selective(method: Selective, architecture: Architecture, tensors: Tensors, base: Plain) -> Terms:
    """BitFit's biases and the norms' weights and biases, less those of the base."""
    found: Layers = {}
    for name in method.selected(architecture):
        plain = base.vector(name)
        assert plain is not None, name  # it is a parameter of the architecture
        kind = {"bias": "shift", "weight": "weight"}[last(name)]
        found.setdefault(name.rpartition(".")[0], {})[kind] = tensors[name] - plain
    return Terms(found)


def _lora(method: LoRA, architecture: Architecture, tensors: Tensors, base: Plain) -> Terms:
    """LoRA, rsLoRA and PiSSA, which takes its initial factors away; DoRA's gain is c, less what c does to the bias."""
    found: Layers = {}
    for site in method.sites(architecture):
        A, B = tensors[f"{site.path}.lora_A"], method.scaling_of(site.path) * tensors[f"{site.path}.lora_B"]
        pairs = _pairs(site, A, B)
        if method.init == "pissa":
            first = _pairs(
                site, tensors[f"{site.path}.pissa_A"], -method.scaling_of(site.path) * tensors[f"{site.path}.pissa_B"]
            )
            pairs = [
                (np.concatenate([A, A0], axis=1), np.concatenate([B, B0]))
                for (A, B), (A0, B0) in zip(pairs, first, strict=True)
            ]
        found[site.path] = _named(site, pairs)
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


def _qalora(method: QALoRA, architecture: Architecture, tensors: Tensors, base: Plain) -> Terms:
    """G, for A reads the sums of groups; where it reads their means, B is divided by how many inputs these have."""
    found: Layers = {}
    for site in method.sites(architecture):
        A, B = tensors[f"{site.path}.lora_A"], method.alpha / method.rank * tensors[f"{site.path}.lora_B"]
        B = B / (site.inputs // A.shape[1]) if method.pool == "avg" else B
        found[site.path] = _named(site, _pairs(site, A, B), "GB")
    return Terms(found)


def _adalora(method: AdaLoRA, architecture: Architecture, tensors: Tensors, base: Plain) -> Terms:
    scaling = method.alpha / (method.init_rank + 1e-5)
    found: Layers = {}
    for site in method.sites(architecture):
        A, B, E = (tensors[f"{site.path}.lora_{name}"] for name in "ABE")
        found[site.path] = _named(site, _pairs(site, A * E, scaling * B))
    return Terms(found)


def _vera(method: VeRA, architecture: Architecture, tensors: Tensors, base: Plain) -> Terms:
    """B with both vectors in it. A is the same array at all layers of one width."""
    A, B = tensors["shared.vera_A"], tensors["shared.vera_B"]
    narrowed = {width: _held(A[:, :width].T) for width in {site.inputs for site in method.sites(architecture)}}
    found: Layers = {}
    for site in method.sites(architecture):
        vectors = (np.split(tensors[f"{site.path}.vera_lambda_{name}"], site.count) for name in "db")
        scaled = [_held((b[:, None] * B[: len(b)] * d).T) for d, b in zip(*vectors, strict=True)]
        found[site.path] = _named(site, [(narrowed[site.inputs], one) for one in scaled])
    return Terms(found)


def _fact(method: FacT, architecture: Architecture, tensors: Tensors, base: Plain) -> Terms:
    """s U Sigma_j V^T of each of a layer's weights, which lie below one another, or beside in a wide layer."""
    U, V, C, P = (tensors[f"shared.fact_{name}"] for name in "UVCP")
    found: Layers = {}
    for site, weights in method.layers(architecture):
        cores = (P[weights.start : weights.stop] @ C.reshape(len(C), -1)).reshape(-1, *C.shape[1:])
        if site.inputs > len(U):
            A, B = (U @ cores).reshape(-1, U.shape[1]), V.T
        else:
            A, B = U, (V @ cores.transpose(0, 2, 1)).reshape(-1, V.shape[1]).T
        found[site.path] = {"A": _held(A[: site.inputs]), "B": _held(method.scale * B[:, : site.outputs])}
    return Terms(found)


def _ia3(method: IA3, architecture: Architecture, tensors: Tensors, base: Plain) -> Terms:
    found: Layers = {}
    for site in method.sites(architecture):
        own = tensors[f"{site.path}.ia3_l"]
        if LAYERS[site.name] in method.inputs:
            found[site.path] = {"into": own}
        else:
            gain = np.ones(site.outputs, np.float32)
            for rows, values in zip(site.rows, np.split(own, site.count), strict=True):
                gain[rows] = values
            found[site.path] = {"gain": gain}
    return Terms(found)


def _ssf(method: SSF, architecture: Architecture, tensors: Tensors, base: Plain) -> Terms:
    return Terms(
        {
            path: {"gain": tensors[f"{path}.ssf_scale"], "shift": tensors[f"{path}.ssf_shift"]}
            for path in method.layers(architecture)
        }
    )


def _adaptformer(method: AdaptFormer, architecture: Architecture, tensors: Tensors, base: Plain) -> Terms:
    found: Layers = {}
    for block in (f"blocks.{number}" for number in method.chosen_blocks(architecture)):
        down, up = (_held(tensors[f"{block}.adapter_{name}.weight"].T) for name in ("down", "up"))
        found[block] = {
            "down": down,
            "down_bias": tensors[f"{block}.adapter_down.bias"],
            "up": method.scale * up,
            "up_bias": method.scale * tensors[f"{block}.adapter_up.bias"],
        }
    return Terms(found)


def _vpt(method: VPT, architecture: Architecture, tensors: Tensors, base: Plain) -> Terms:
    blocks = [f"blocks.{number}" for number in method.chosen_blocks(architecture)]
    entered = blocks if method.deep else blocks[:1]
    left = blocks if method.deep else blocks[-1:]
    return Terms(
        {block: {"prompts": tensors[f"{block}.prompts"][0]} for block in entered},
        tuple(
            Entering(block, method.tokens if block in entered else 0, block in left)
            for block in blocks
            if block in entered or block in left
        ),
    )


def _pairs(site: Site, A: Array, B: Array) -> list[tuple[Array, Array]]:
    """A ``(in, r)`` and B ``(r, out)`` of the whole layer, or of each of its parts, from those that lie stacked."""
    both = zip(np.split(A, site.count), np.split(B, site.count), strict=True)
    return [(_held(a.T), _held(b.T)) for a, b in both]


def _named(site: Site, pairs: list[tuple[Array, Array]], names: str = "AB") -> dict[str, Array]:
    endings = [f"_{part}" for part in site.parts] or [""]
    return {
        f"{name}{ending}": matrix
        for ending, pair in zip(endings, pairs, strict=True)
        for name, matrix in zip(names, pair, strict=True)
    }


def _held(matrix: np.ndarray) -> Array:
    """Float32 in C order, as it is multiplied."""
    return np.ascontiguousarray(matrix, np.float32)


TERMS: Mapping[type[MethodConfig], Callable[[Any, Architecture, Tensors, Plain], Terms]] = {
    Linear: _linear,
    BitFit: _selective,
    LayerNorm: _selective,
    LoRA: _lora,
    QALoRA: _qalora,
    AdaLoRA: _adalora,
    VeRA: _vera,
    FacT: _fact,
    IA3: _ia3,
    SSF: _ssf,
    AdaptFormer: _adaptformer,
    VPT: _vpt,
}
"""How each method that mixes says what it does."""

THIRDS = tuple(f"_{part}" for part in PARTS)
"""The endings of A, G and B of a third of a fused qkv's outputs, from the first on."""
