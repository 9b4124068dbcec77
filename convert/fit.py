"""A checkpoint's tensors made those of the model that is wanted, or refused with a list of what does not fit."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from math import isqrt
from pathlib import Path

import numpy as np

from convert.files import listed, renamed
from convert.layouts.pretraining import without_pretraining
from mlx_peft.adaptation.footprint import count
from mlx_peft.config.quantization import Quantization
from mlx_peft.core import memory
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError, shown
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.initial import initial_head
from mlx_peft.vit.parameters import is_head
from mlx_peft.vit.registry import Resampling
from mlx_peft.vit.resample import resize_patches, resize_positions
from mlx_peft.vit.shapes import Shapes, heads, shapes

PATCHES = "patch_embed.proj.weight"
REPRESENTATION = "pre_logits."

LONGEST_CLASS = 1000
"""Characters of a class's name; ImageNet's longest, all its synonyms together, has 130."""

LARGEST_GRID = 128
"""Patches along a side up to which a position grid is resized unasked; timm's largest models have 64."""


def canonical(tensors: Tensors) -> tuple[Tensors, tuple[str, ...]]:
    """A checkpoint under timm's present names, as its ``checkpoint_filter_fn`` has them.

    DeiT-3's layer scales, DINOv2's own names, patch embeddings kept as linear layers. The representation layer of old
    weights is left out, and with it the head that was trained behind it, which timm keeps; and so is what only
    self-supervised training needs.

    Returns:
        The tensors, and what was left out, in words.
    """
    tensors, notes = _without_representation(tensors)
    tensors, more = without_pretraining(tensors)
    tensors, notes = _from_dinov2(tensors), notes + more
    result = {}
    for name, tensor in tensors.items():
        if name == PATCHES and tensor.ndim == 2:
            side = isqrt(tensor.shape[1] // 3)
            if 0 < 3 * side**2 == tensor.shape[1]:
                tensor = tensor.reshape(-1, 3, side, side)
        result[name] = tensor
    return renamed(result, lambda name: re.sub(r"^(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma", name)), notes


def _without_representation(tensors: Tensors) -> tuple[Tensors, tuple[str, ...]]:
    """``head(tanh(pre_logits(x)))`` is no linear head of ``x``: neither half means anything without the other."""
    if not any(name.startswith(REPRESENTATION) for name in tensors):
        return tensors, ()
    kept = {name: t for name, t in tensors.items() if not (name.startswith(REPRESENTATION) or is_head(name))}
    return kept, ("pre_logits: the hidden layer before the head, and the head behind it, are left out",)


def _from_dinov2(tensors: Tensors) -> Tensors:
    """With registers, DINOv2 adds a position to the class token and none to the registers: timm adds it beforehand."""
    positions, token = (tensors.get(name, np.empty(0)) for name in ("pos_embed", "cls_token"))
    if "register_tokens" in tensors and positions.ndim == 3 and token.shape == (1, 1, positions.shape[2]):
        tensors = renamed(tensors, lambda name: "reg_token" if name == "register_tokens" else name)
        tensors["cls_token"] = tensors["cls_token"] + positions[:, :1]
        tensors["pos_embed"] = positions[:, 1:]
    layers = {"w12": "fc1", "w3": "fc2"}
    return renamed(tensors, lambda name: re.sub(r"\.mlp\.(w12|w3)\.", lambda m: f".mlp.{layers[m[1]]}.", name))


def fit(
    tensors: Tensors,
    architecture: Architecture,
    num_classes: int,
    *,
    seed: int,
    resampling: Resampling,
    asked: Collection[str],
    what: str,
    quantization: Quantization | None = None,
) -> tuple[Tensors, list[str]]:
    """The tensors of ``shapes(architecture, num_classes)``, from a checkpoint's.

    The position grid is resized, and a head of another width replaced by a fresh one. Fewer blocks or other patches
    than the checkpoint's are made from it where the user asked for them, and are a misfit otherwise.

    Args:
        asked: the fields of the architecture that the user changed.
        what: the checkpoint and the model, for an error.
        quantization: how the checkpoint is quantised; None: not at all.

    Returns:
        The tensors, and what was changed, in words.

    Raises:
        UserError: where anything else is missing, left over or of another shape, or there is no memory for it.
    """
    tensors, notes = dict(tensors), []

    if "depth" in asked:
        depth = architecture.depth
        surplus = {name for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name)) and int(match[1]) >= depth}
        if surplus:
            notes.append(f"blocks: those of the weights past the first {depth} are left out")
            tensors = {name: tensor for name, tensor in tensors.items() if name not in surplus}
    if architecture.global_pool != "map" and "attn_pool.latent" in tensors:
        notes.append(
            f"attn_pool: the weights' attention pooling is left out, global_pool is {architecture.global_pool}"
        )
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("attn_pool.")}

    fresh: list[str] = []
    made: dict[str, Callable[[], np.ndarray]] = {}  # only once all the rest is known to fit: shapes may be claims

    def later(name: str, shape: tuple[int, ...], make: Callable[[], np.ndarray]) -> None:
        tensors[name], made[name] = np.broadcast_to(np.float32(0), shape), make

    kernels, patch = tensors.get(PATCHES), architecture.patch_size
    if "patch_size" in asked and kernels is not None and kernels.ndim == 4 and kernels.shape[2] != patch:
        notes.append(f"patch_embed: {kernels.shape[2]} pixel patches resized to {patch}")
        later(PATCHES, (*kernels.shape[:2], patch, patch), partial(resize_patches, kernels, patch, resampling))
    positions, grid = tensors.get("pos_embed"), architecture.grid_size
    if positions is not None and positions.ndim == 3 and architecture.pos_embed:
        prefix = 0 if architecture.no_embed_class else architecture.num_prefix_tokens
        side = isqrt(max(positions.shape[1] - prefix, 0))
        if 0 < side != grid and side**2 + prefix == positions.shape[1]:
            if "img_size" not in asked and grid > LARGEST_GRID:
                raise UserError(
                    f"{what} do not fit together: pos_embed is of {side} x {side} patches, and {grid} x {grid} are "
                    f"claimed (img_size {architecture.img_size}, patch_size {architecture.patch_size}), more than "
                    f"{LARGEST_GRID} x {LARGEST_GRID}: ask for the image size if it is meant"
                )
            notes.append(f"pos_embed: {side} x {side} resized to {grid} x {grid}")
            length = (len(positions), prefix + grid**2, positions.shape[2])
            later("pos_embed", length, partial(resize_positions, positions, prefix, grid, resampling))

    wanted = shapes(architecture, num_classes)
    for head in heads(architecture):
        old = tensors.get(f"{head}.weight")
        if old is None or old.shape[:1] != (num_classes,):
            having = "none" if old is None else f"one for {old.shape[0] if old.shape else 'nothing'}"
            notes.append(f"{head}: a new one for {num_classes} classes, the weights have {having}")
            tensors |= {
                name: np.broadcast_to(np.float32(0), shape)
                for name, shape in wanted.items()
                if name.startswith(f"{head}.")
            }
            fresh.append(head)
        else:
            notes.append(f"{head}: kept, the weights have one for {num_classes} classes too")

    words: set[str] = set()
    if quantization is not None:
        wanted = quantization.stored(architecture, wanted)
        words = {f"{site.path}.weight" for site in quantization.sites(architecture)}
    _must_match(tensors, wanted, words, what)
    memory.require({"weights": 4 * count(wanted)}, what)
    tensors |= {name: make() for name, make in made.items()}
    if fresh:
        drawn = initial_head(architecture, num_classes, seed)
        tensors |= {name: tensor for name, tensor in drawn.items() if name.partition(".")[0] in fresh}
    return tensors, notes


def must_be_sound(
    tensors: Tensors, architecture: Architecture, quantization: Quantization | None, where: str | Path
) -> None:
    """Raises UserError, with the file, where a head is no matrix or codes are not what a quantisation says."""
    for head in ("head.weight", "head_dist.weight"):
        if head in tensors and tensors[head].ndim != 2:
            raise UserError(f"{where}: {head} has the shape {tensors[head].shape}, which should have 2 dimensions")
    places = [] if quantization is None else [site.path for site in quantization.sites(architecture)]
    stored = {} if quantization is None else quantization.stored(architecture, {})
    words = {f"{place}.weight" for place in places}
    faults = [
        f"{name} is of the type {tensor.dtype}"
        for name, tensor in tensors.items()
        if tensor.dtype == np.uint32 and name not in words
    ]
    faults += [
        f"{name} is not there" if name not in tensors else f"{name} has the shape {tensors[name].shape}, not {shape}"
        for name, shape in stored.items()
        if name not in tensors or tensors[name].shape != shape
    ]
    faults += [
        f"{name} is of the type {tensors[name].dtype}"
        for name in words & tensors.keys()
        if tensors[name].dtype != np.uint32
    ]
    if faults:
        raise UserError(f"{where}: not the codes that its quantization entry says: {listed(faults)}")


def must_hold(found: Mapping[str, tuple[int, ...]], wanted: Shapes, what: str) -> None:
    """Raises UserError where the tensors of a file are not those that are wanted: before anything is made of either."""
    if differing := found.keys() ^ wanted.keys():
        raise UserError(f"{what}: these tensors are missing or unknown: {listed(sorted(differing))}")
    if other := [f"{name} {shape}, not {wanted[name]}" for name, shape in found.items() if shape != wanted[name]]:
        raise UserError(f"{what}: these tensors are of another shape: {listed(other)}")


def named(classes: Sequence[object], tensors: Tensors, where: str) -> tuple[str, ...]:
    """The names of the head's rows: none where there is no head.

    Raises:
        UserError: where there are names, and not one for each row; where one is no text, or too long for a name.
    """
    names = [name for name in classes if isinstance(name, str)]
    if len(names) < len(classes):
        other = next(name for name in classes if not isinstance(name, str))
        raise UserError(f"{where}: a name should be text, not {shown(other)}")
    if long := [name for name in names if len(name) > LONGEST_CLASS]:
        raise UserError(f"{where}: a name of {len(long[0]):,} characters; {LONGEST_CLASS:,} at most are read")
    rows = len(tensors.get("head.weight", ()))
    if names and rows and len(names) != rows:
        raise UserError(f"{where}: {len(names)} names, and the head has {rows} rows")
    return tuple(names) if rows else ()


def _must_match(tensors: Tensors, wanted: dict[str, tuple[int, ...]], words: set[str], what: str) -> None:
    both = [name for name in wanted if name in tensors]
    faults = {
        "missing": _grouped(name for name in wanted if name not in tensors),
        "left over": _grouped(name for name in tensors if name not in wanted),
        "of another shape": [
            f"{name} {tensors[name].shape}, not {wanted[name]}" for name in both if tensors[name].shape != wanted[name]
        ],
        "of another type": [
            f"{name} {tensors[name].dtype}" for name in both if (tensors[name].dtype == np.uint32) != (name in words)
        ],
    }
    if any(faults.values()):
        lines = [f"  {fault}: {listed(names)}" for fault, names in faults.items() if names]
        raise UserError("\n".join([f"{what} do not fit together", *lines]))


def _grouped(names: Iterable[str]) -> list[str]:
    """The same parameter of several blocks as one: ``blocks.*.ls1.gamma (12 blocks)``."""
    groups = defaultdict(list)
    for name in names:
        groups[re.sub(r"^blocks\.\d+\.", "blocks.*.", name)].append(name)
    return [some[0] if len(some) == 1 else f"{group} ({len(some)} blocks)" for group, some in groups.items()]
