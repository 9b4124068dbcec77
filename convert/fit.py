"""A checkpoint's tensors made those of the model that is wanted, or refused with a list of what does not fit."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import isqrt
from pathlib import Path

import numpy as np

from convert.canonical import PATCHES
from convert.files import listed
from convert.head import Head
from mlx_peft.adaptation.footprint import count
from mlx_peft.config.quantization import Quantization
from mlx_peft.core import memory
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError, shown
from mlx_peft.core.text import counted
from mlx_peft.vit.architecture import RELATIVE, Architecture
from mlx_peft.vit.initial import initial_head
from mlx_peft.vit.parameters import is_head, last
from mlx_peft.vit.registry import Resampling
from mlx_peft.vit.relative import TABLE, grid_of, resize_table, rows_of
from mlx_peft.vit.resample import resize_patches, resize_positions
from mlx_peft.vit.shapes import Shapes, shapes

LONGEST_CLASS = 1000
"""A class's name has at most so many characters; ImageNet's longest, with all its synonyms, has 130."""

LARGEST_GRID = 128
"""A position grid of up to so many patches along a side is resized unasked; timm's largest models have 64."""


def fit(
    tensors: Tensors,
    architecture: Architecture,
    num_classes: int,
    *,
    head: Head,
    seed: int,
    resampling: Resampling,
    asked: Collection[str],
    what: str,
    quantization: Quantization | None = None,
) -> tuple[Tensors, list[str]]:
    """The tensors of ``shapes(architecture, num_classes)``, from a checkpoint's.

    The position grid and the tables of relative positions are resized. Fewer blocks or other patches than the
    checkpoint's are made from it where the user asked for them, and are a misfit otherwise.

    Args:
        head: whether the checkpoint's is kept, or a new one drawn.
        asked: the fields of the architecture that the user changed.
        what: the checkpoint and the model, for an error.
        quantization: how the checkpoint is quantised; None: not at all.

    Returns:
        The tensors, and what was changed, in words.

    Raises:
        UserError: where anything else is missing, left over or of another shape, or there is no memory for it.
    """
    fitting = _Fitting(dict(tensors), architecture, resampling, asked, what)
    fitting.leave_out()
    fitting.resize_patches()
    fitting.resize_positions()
    fitting.resize_tables()
    wanted = shapes(architecture, num_classes)
    fitting.settle_heads(head, wanted)

    words: set[str] = set()
    if quantization is not None:
        wanted = quantization.stored(architecture, wanted)
        words = {f"{site.path}.weight" for site in quantization.sites(architecture)}
    _must_match(fitting.tensors, wanted, words, what)
    memory.require({"weights": 4 * count(wanted)}, what)
    result = fitting.tensors | {name: make() for name, make in fitting.later.items()}
    if not head.kept:
        result |= initial_head(architecture, num_classes, seed)
    return result, fitting.notes


@dataclass
class _Fitting:
    """A checkpoint's tensors on their way to an architecture.

    Attributes:
        tensors: those there will be; where one is resized or replaced, zeros of its shape that take no memory.
        later: what computes the resized ones, once all the rest is known to fit: shapes may be mere claims.
        notes: what was changed, in words.
    """

    tensors: Tensors
    architecture: Architecture
    resampling: Resampling
    asked: Collection[str]
    what: str
    later: dict[str, Callable[[], np.ndarray]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def leave_out(self) -> None:
        """The blocks past the depth that was asked for, and an attention pooling that has no use."""
        depth, pool = self.architecture.depth, self.architecture.global_pool
        if "depth" in self.asked:
            surplus = {
                name for name in self.tensors if (at := re.match(r"blocks\.(\d+)\.", name)) and int(at[1]) >= depth
            }
            if surplus:
                self.notes.append(f"blocks: those of the weights past the first {depth} are left out")
                self.tensors = {name: tensor for name, tensor in self.tensors.items() if name not in surplus}
                if (frequencies := self.tensors.get("rope.freqs")) is not None and frequencies.ndim == 4:
                    self.tensors["rope.freqs"] = frequencies[:, :depth]
        if pool != "map" and "attn_pool.latent" in self.tensors:
            self.notes.append(f"attn_pool: the weights' attention pooling is left out, global_pool is {pool}")
            self.tensors = {name: t for name, t in self.tensors.items() if not name.startswith("attn_pool.")}

    def resize_patches(self) -> None:
        """The kernels of the patches, where the user asked for patches of another size."""
        kernels, patch = self.tensors.get(PATCHES), self.architecture.patch_size
        if "patch_size" in self.asked and kernels is not None and kernels.ndim == 4 and kernels.shape[2] != patch:
            self.notes.append(f"patch_embed: {kernels.shape[2]} pixel patches resized to {patch}")
            self._put_off(
                PATCHES, (*kernels.shape[:2], patch, patch), partial(resize_patches, kernels, patch, self.resampling)
            )

    def resize_positions(self) -> None:
        """The grid of positions. Raises UserError for one that is larger than LARGEST_GRID and was not asked for."""
        architecture = self.architecture
        positions, grid = self.tensors.get("pos_embed"), architecture.grid_size
        if positions is None or positions.ndim != 3 or not architecture.pos_embed:
            return
        prefix = 0 if architecture.no_embed_class else architecture.num_prefix_tokens
        side = isqrt(max(positions.shape[1] - prefix, 0))
        if side in (0, grid) or side**2 + prefix != positions.shape[1]:
            return  # as it should be, or no grid: that is said where all the shapes are compared
        self._must_be_asked("pos_embed", side)
        self.notes.append(f"pos_embed: {side} x {side} resized to {grid} x {grid}")
        length = (len(positions), prefix + grid**2, positions.shape[2])
        self._put_off("pos_embed", length, partial(resize_positions, positions, prefix, grid, self.resampling))

    def resize_tables(self) -> None:
        """The tables of relative positions. Raises UserError as for the grid."""
        grid, found = self.architecture.grid_size, set()
        for name, table in self.tensors.items():
            side = grid_of(len(table)) if last(name) == TABLE and table.ndim == 2 else None
            if side is None or side == grid or self.architecture.positions not in RELATIVE:
                continue  # as it should be, or no table: that is said where all the shapes are compared
            self._must_be_asked(name, side)
            found.add(side)
            self._put_off(name, (rows_of(grid), table.shape[1]), partial(resize_table, table, grid))
        self.notes += [f"{TABLE}: of {side} x {side} patches resized for {grid} x {grid}" for side in sorted(found)]

    def _must_be_asked(self, name: str, side: int) -> None:
        """Raises UserError for a grid that is larger than LARGEST_GRID, and that nobody has asked for."""
        architecture, grid = self.architecture, self.architecture.grid_size
        if "img_size" not in self.asked and grid > LARGEST_GRID:
            raise UserError(
                f"{self.what} do not fit together: {name} is of {side} x {side} patches, and {grid} x {grid} are "
                f"claimed (img_size {architecture.img_size}, patch_size {architecture.patch_size}), more than "
                f"{LARGEST_GRID} x {LARGEST_GRID}: ask for the image size if it is meant"
            )

    def settle_heads(self, head: Head, wanted: Shapes) -> None:
        """Makes room for new heads, or puts the rows of those that are kept in their order."""
        every = {name: shape for name, shape in wanted.items() if is_head(name)}
        if not head.kept:
            kept = {name: tensor for name, tensor in self.tensors.items() if name not in every}
            self.tensors = kept | {name: _unwritten(shape) for name, shape in every.items()}
        elif head.order is not None:
            self.tensors |= {name: self.tensors[name][list(head.order)] for name, shape in every.items()
                             if name in self.tensors and self.tensors[name].shape == shape}  # fmt: skip

    def _put_off(self, name: str, shape: tuple[int, ...], make: Callable[[], np.ndarray]) -> None:
        self.tensors[name], self.later[name] = _unwritten(shape), make


def _unwritten(shape: tuple[int, ...]) -> np.ndarray:
    """Zeros that take no memory, in the place of what is computed later."""
    return np.broadcast_to(np.float32(0), shape)


def must_be_sound(
    tensors: Tensors, architecture: Architecture, quantization: Quantization | None, where: str | Path
) -> None:
    """Raises UserError, with the file, where a head is no matrix or codes are not what a quantisation says."""
    for head in ("head.weight", "head_dist.weight"):
        if head in tensors and tensors[head].ndim != 2:
            raise UserError(f"{where}: {head} should have 2 dimensions, not the shape {tensors[head].shape}")
    places = [] if quantization is None else [site.path for site in quantization.sites(architecture)]
    stored = {} if quantization is None else quantization.stored(architecture, {})
    words = {f"{place}.weight" for place in places}
    faults = [
        f"{name} has the type {tensor.dtype}"
        for name, tensor in tensors.items()
        if tensor.dtype == np.uint32 and name not in words
    ]
    faults += [
        f"{name} is missing" if name not in tensors else f"{name} has the shape {tensors[name].shape}, not {shape}"
        for name, shape in stored.items()
        if name not in tensors or tensors[name].shape != shape
    ]
    faults += [
        f"{name} has the type {tensors[name].dtype}"
        for name in words & tensors.keys()
        if tensors[name].dtype != np.uint32
    ]
    if faults:
        raise UserError(
            f"{where}: the tensors are not the codes that its quantization entry describes: {listed(faults)}"
        )


def must_hold(found: Mapping[str, tuple[int, ...]], wanted: Shapes, what: str) -> None:
    """Raises UserError where the tensors of a file are not those that are wanted: before anything is made of either."""
    if differing := found.keys() ^ wanted.keys():
        raise UserError(f"{what}: these tensors are missing or unknown: {listed(sorted(differing))}")
    if other := [f"{name} {shape}, not {wanted[name]}" for name, shape in found.items() if shape != wanted[name]]:
        raise UserError(f"{what}: these tensors are of another shape: {listed(other)}")


def class_names(classes: Sequence[object], tensors: Tensors, where: str) -> tuple[str, ...]:
    """The names of the head's rows: none where there is no head.

    Raises:
        UserError: where there are names, and not one for each row; where one is no text, or too long for a name.
    """
    names = [name for name in classes if isinstance(name, str)]
    if len(names) < len(classes):
        other = next(name for name in classes if not isinstance(name, str))
        raise UserError(f"{where}: a name should be text, not {shown(other)}")
    if long := [name for name in names if len(name) > LONGEST_CLASS]:
        raise UserError(f"{where}: a name has {len(long[0]):,} characters; at most {LONGEST_CLASS:,} are read")
    rows = len(tensors.get("head.weight", ()))
    if names and rows and len(names) != rows:
        raise UserError(f"{where}: {counted(len(names), 'name')}, and the head has {counted(rows, 'row')}")
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


def _grouped(parameters: Iterable[str]) -> list[str]:
    """The same parameter of several blocks as one: ``blocks.*.ls1.gamma (12 blocks)``."""
    groups = defaultdict(list)
    for name in parameters:
        groups[re.sub(r"^blocks\.\d+\.", "blocks.*.", name)].append(name)
    return [names[0] if len(names) == 1 else f"{group} ({len(names):,} blocks)" for group, names in groups.items()]
