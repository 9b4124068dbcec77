"""VeRA as Hugging Face PEFT keeps it: two vectors a layer, and once for all layers the projections A and B.

PEFT knows no parts of a fused qkv. An adapter of parts has several times the rank there: each part has a copy of A of
its own, and a copy of B in the part's rows; whole layers have one more copy of both. A layer's lambda_d is zero for the
copies that are not its own, so that PEFT computes the same logits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.adapters.block_layers import by_kind, by_layer, must_ask_no_more, understood
from convert.adapters.parts import adapted, gathered, note, parts_of, spread
from convert.adapters.separate import is_separate, rows, stacked, together
from convert.adapters.targeting import target_modules, where
from convert.files import listed
from mlx_peft.adaptation.projections import projections
from mlx_peft.config.methods import VeRA
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.vit.parameters import is_head
from mlx_peft.vit.sites import PARTS

LAMBDAS = LAMBDA_D, LAMBDA_B = "vera_lambda_d", "vera_lambda_b"
OURS = ("shared.vera_A", "shared.vera_B")
THEIRS = ("base_model.vera_A", "base_model.vera_B")
"""The projections' names; PEFT keeps them beside the model, not in it."""

Matrix = NDArray[np.float32]

WHOLE = "whole"
"""It stands for the layers that are adapted as wholes, beside q, k and v."""

READ = {"d_initial", "init_weights", "projection_prng_key", "r", "save_projection", "vera_dropout"}


def pack(method: VeRA, tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Configuration and tensors for PEFT, the projections always among them."""
    own = any(is_separate(name.rpartition(".")[0]) for name in tensors)
    copies = (WHOLE,) if own else _copies(method)
    packed = {name: tensor for name, tensor in tensors.items() if name not in OURS}
    layers = []
    for name in packed:
        layer, _, kind = name.rpartition(".")
        parts = parts_of(method.targets, layer)
        if kind == LAMBDA_D:
            packed[name] = spread(packed[name], parts or (WHOLE,), 0, copies)
            layers.append(layer)
        elif kind == LAMBDA_B and parts:
            packed[name] = spread(packed[name], parts, 0)
    outputs = {layer: len(packed[f"{layer}.{LAMBDA_B}"]) for layer in layers}
    stacked = _stacked(tensors[OURS[0]], tensors[OURS[1]], copies, outputs)
    config = {
        "r": len(stacked[0]),
        "d_initial": method.d_initial,
        "vera_dropout": method.dropout,
        "projection_prng_key": method.projection_key,
        "save_projection": True,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_weights": True,
        "target_modules": target_modules(layers, every_block=method.blocks is None),
    }
    return config, packed | dict(zip(THEIRS, stacked, strict=True))


def apart(method: VeRA, tensors: Tensors) -> Tensors:
    """The tensors with q, k and v on layers of their own, as which VeRA takes parts of a fused qkv already.

    Raises:
        UserError: where the whole qkv is adapted, whose rows are rows of B, of which q, k and v would share the first.
    """
    if "qkv" in method.targets:
        raise UserError(
            "VeRA on a whole qkv has no equal where q, k and v are layers of their own: they would share the rows of "
            "its projection, and have rows of their own here"
        )
    found: Tensors = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        if kind in LAMBDAS:
            shares = rows(tensor, layer, parts_of(method.targets, layer))
            found |= {f"{own}.{kind}": share for own, share in shares.items()}
        else:
            found[name] = tensor
    return found


def unpack(method: VeRA, packed: Tensors) -> Tensors:
    """What ``pack`` was given, bit for bit. Raises ValueError where the tensors are not of this method."""
    copies = _copies(method)
    tensors, layers = by_kind({n: t for n, t in packed.items() if n not in THEIRS}, LAMBDAS, "VeRA")
    outputs = {}
    for layer, held in layers.items():
        parts, d, b = parts_of(method.targets, layer), held[LAMBDA_D], held[LAMBDA_B]
        tensors[f"{layer}.{LAMBDA_D}"] = gathered(d, parts or (WHOLE,), 0, copies)
        tensors[f"{layer}.{LAMBDA_B}"] = gathered(b, parts, 0) if parts else b
        outputs[layer] = b.size
    if not outputs or (copies != (WHOLE,) and not _qkv(outputs)):
        raise ValueError("the vectors of an adapted layer are missing")
    A, B = (packed.get(name, np.empty(0)) for name in THEIRS)
    largest = max(outputs.values())
    if A.ndim != 2 or B.shape != (largest, len(A)) or len(A) % len(copies):
        raise ValueError(f"layers of up to {largest} outputs cannot share a vera_A {A.shape} and a vera_B {B.shape}")
    taken = _taken(A, B, copies, outputs)
    for name, one, other in zip(THEIRS, (A, B), _stacked(*taken, copies, outputs), strict=True):
        if not np.array_equal(one, other):
            raise ValueError(f"{name} is not a copy of one projection for each of {', '.join(copies)}")
    return tensors | dict(zip(OURS, taken, strict=True))


def notes(method: VeRA, tensors: Tensors) -> list[str]:
    """What PEFT does not see in the file, and would do otherwise were it to train the adapter further."""
    there = f", and the rank is {len(_copies(method))} times as large"
    return note(method.targets, tensors, there, "vectors move that are not trained here")


def from_peft(config: dict[str, Any], packed: Tensors, path: Path) -> tuple[VeRA, Tensors]:
    """An adapter that PEFT itself wrote for a timm ViT. Projections that it did not save are drawn from their key.

    Raises:
        UserError: for what is more than VeRA on the linear layers of the blocks, and for layers that cannot share the
            projections.
    """
    must_ask_no_more(config, READ, path)
    layers = by_layer({n: t for n, t in packed.items() if n not in THEIRS}, LAMBDAS, "VeRA", path)
    targets, blocks = where(config, layers, path)
    with understood(VeRA, "VeRA", path):
        method = VeRA.model_validate({
            "rank": config["r"],
            "d_initial": config.get("d_initial", 0.1),
            "dropout": config.get("vera_dropout", 0),
            "projection_key": config.get("projection_prng_key", 0),
            "targets": targets,
            "blocks": blocks,
        })  # fmt: skip
    outputs = {layer: tensors[LAMBDA_B].size for layer, tensors in layers.items()}
    if config.get("save_projection", True):
        if missing := [name for name in THEIRS if name not in packed]:
            raise UserError(f"{path}: it says that its projections were saved, and {missing[0]} is missing")
        shared = packed[THEIRS[0]], packed[THEIRS[1]]
    else:
        shared = projections(method.projection_key, method.rank, _inputs(outputs, path), max(outputs.values()))
    for layer, tensors in layers.items():
        shapes = (tensors[LAMBDA_D].shape, shared[0].shape[:1], shared[1].shape[1:])
        if shapes != ((method.rank,),) * 3 or outputs[layer] > len(shared[1]):
            raise UserError(
                f"{path}: {layer} cannot share the projections A {shared[0].shape} and B {shared[1].shape}: it has "
                f"{outputs[layer]} outputs and a lambda_d {tensors[LAMBDA_D].shape}, and the rank is {method.rank}"
            )
    tensors = {name: tensor for name, tensor in packed.items() if is_head(name)}
    for layer, names in together({name: name for name in layers}).items():
        for kind in LAMBDAS:
            tensors[f"{layer}.{kind}"] = stacked([layers[name][kind] for name in names], f"{layer}.{kind}")
    return method, tensors | dict(zip(OURS, (shared[0], shared[1][: max(outputs.values())]), strict=True))


def _inputs(outputs: dict[str, int], path: Path) -> int:
    """The most inputs of a layer, from the outputs of all: a plain MLP's fc2 has as many inputs as fc1 has outputs.

    Raises UserError where they do not say. A wrong number cannot go unseen: A would have another width than the model.
    """
    by_name = {layer.rpartition(".")[2]: count for layer, count in outputs.items()}
    inner = by_name.get("fc1", by_name.get("fc1_g"))
    own = next((by_name[part] for part in PARTS if part in by_name), by_name.get("qkv", 0) // len(PARTS))
    dim = by_name.get("proj", by_name.get("fc2", own))
    if not dim or ("fc2" in by_name and inner is None):
        raise UserError(
            f"{path}: its projections were not saved, and {listed(sorted(by_name))} alone do not say how large they "
            "are: save it again with save_projection=True"
        )
    return max(dim, inner) if inner and "fc2" in by_name else dim


def _copies(method: VeRA) -> tuple[str, ...]:
    """What has a copy of A and B to itself in PEFT's projections: each part, and whole layers together."""
    parts = adapted(method.targets)
    return parts if len(parts) == len(method.targets) else (*parts, WHOLE)


def _stacked(A: Matrix, B: Matrix, copies: tuple[str, ...], outputs: dict[str, int]) -> tuple[Matrix, Matrix]:
    """PEFT's projections, for layers with so many outputs: A once for each copy, B in each copy's rows and columns."""
    rank = len(A)
    placed = np.zeros((max(outputs.values()), rank * len(copies)), np.float32)
    for index, place in enumerate(_rows(copies, outputs)):
        placed[place, index * rank : (index + 1) * rank] = B[: place.stop - place.start]
    return np.tile(A, (len(copies), 1)), placed


def _taken(A: Matrix, B: Matrix, copies: tuple[str, ...], outputs: dict[str, int]) -> tuple[Matrix, Matrix]:
    """The A and B that ``_stacked`` was given: the last copy is all of B."""
    rank = len(A) // len(copies)
    return A[:rank], B[_rows(copies, outputs)[-1], (len(copies) - 1) * rank :]


def _rows(copies: tuple[str, ...], outputs: dict[str, int]) -> list[slice]:
    """Which rows of PEFT's B hold each copy: a part's own, or as many as the largest layer or part has."""
    if copies == (WHOLE,):
        return [slice(0, max(outputs.values()))]
    dim = _qkv(outputs) // len(PARTS)
    largest = max(dim, *(count for layer, count in outputs.items() if not layer.endswith(".qkv")), 0)
    starts = [PARTS.index(copy) * dim for copy in copies if copy != WHOLE]
    return [slice(start, start + dim) for start in starts] + [slice(0, largest)] * (WHOLE in copies)


def _qkv(outputs: dict[str, int]) -> int:
    """The outputs of a qkv; 0 where there is none."""
    return max((count for layer, count in outputs.items() if layer.endswith(".qkv")), default=0)
