"""What every foreign layout gives: a checkpoint under timm's names, and what it says of itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np

from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.core.text import counted
from mlx_peft.tasks.registry import USUAL
from mlx_peft.tasks.task import Task
from mlx_peft.vit.architecture import Architecture, Preprocessing
from mlx_peft.vit.registry import altered


@dataclass(frozen=True)
class Asked:
    """What the user says of a checkpoint that does not say it.

    Attributes:
        name: a model's: timm's, or one that the layout knows; None: nothing is said.
        args: fields of the architecture.
    """

    name: str | None = None
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """What a layout makes of a checkpoint.

    Attributes:
        tensors: under timm's names, the head among them where there is one.
        preprocessing: None where the checkpoint does not say it.
        classes: names in the order of the head's rows; empty where they are unknown.
        notes: what was left out, for a person.
        task: what the head answers.
    """

    tensors: Tensors
    architecture: Architecture
    preprocessing: Preprocessing | None
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    task: Task = USUAL


@dataclass(frozen=True)
class Layout:
    """One way in which other software keeps a ViT.

    Attributes:
        name: for messages and JSON.
        title: whose it is, for a person.
        anchor: a tensor that every checkpoint of the layout has, and no other layout.
        read: tensors by the layout's names, the file they are from and what the user says. Raises UserError.
    """

    name: str
    title: str
    anchor: str
    read: Callable[[Tensors, Path, Asked], Reading]


def shape(tensors: Tensors, name: str, dimensions: int, path: Path) -> tuple[int, ...]:
    """The shape of a tensor that must be there. Raises UserError."""
    if name not in tensors:
        raise UserError(f"{path} lacks the tensor {name}")
    found = tensors[name].shape
    if len(found) != dimensions or 0 in found:
        raise UserError(f"{path}: {name} should have {counted(dimensions, 'dimension')}, not the shape {found}")
    return found


def inferred(tensors: Tensors, num_heads: int, path: Path, **fields: Any) -> Architecture:
    """The plain architecture that timm's tensors have the shapes of; ``fields`` are what shapes do not say.

    Raises:
        UserError: where a tensor is missing or the shapes contradict each other.
    """
    dim, channels, patch, other = shape(tensors, "patch_embed.proj.weight", 4, path)
    if channels != 3 or patch != other:
        raise UserError(
            f"{path}: its patches have {channels} channels and {patch} x {other} pixels: only squares of 3 channels "
            "are supported"
        )
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    hidden = shape(tensors, "blocks.0.mlp.fc1.weight", 2, path)[0]
    length = shape(tensors, "pos_embed", 3, path)[1]
    side = isqrt(max(length - int("cls_token" in tensors), 0))
    fields = {
        "img_size": side * patch, "patch_size": patch, "embed_dim": dim, "depth": depth, "num_heads": num_heads,
        "mlp_ratio": ratio(hidden, dim), **fields,
    }  # fmt: skip
    return altered(Architecture(), fields, f"{path}: its shapes")


def heads_of(dim: int, asked: Asked, known: Mapping[int, int], path: Path) -> int:
    """The number of attention heads, which no shape says: what the user says, or what the width is published with.

    Raises:
        UserError: where neither is known.
    """
    if isinstance(count := asked.args.get("num_heads"), int):
        return count
    if dim not in known:
        widths = ", ".join(map(str, known))
        raise UserError(
            f"{path}: its shapes do not say how many attention heads a model of width {dim} has (known widths: "
            f"{widths}): give num_heads",
            arguments=("args",),
        )
    return known[dim]


def contiguous(tensor: np.ndarray) -> np.ndarray:
    """A transposed view as an array of its own."""
    return np.ascontiguousarray(tensor)


def ratio(hidden: int, dim: int) -> float:
    """The ``mlp_ratio`` with which ``int(dim * mlp_ratio)`` is the hidden width, whatever the division rounds to."""
    found = hidden / dim
    return found if int(dim * found) == hidden else float(np.nextafter(found, np.inf))


def differing(architecture: Architecture, other: Architecture, free: Collection[str]) -> list[str]:
    """The fields outside ``free`` in which an architecture is another one than ``other``, with its own values.

    What counts is what a field does: where the final norm stands, how wide the MLP is, whether there is a layer scale.
    """

    def effects(one: Architecture) -> dict[str, Any]:
        every = {name: getattr(one, name) for name in Architecture.model_fields}  # a dump leaves some out
        return every | {
            "fc_norm": one.norm_after_pool,
            "mlp_ratio": one.hidden_dim / one.embed_dim,
            "init_values": one.layer_scale,
            "pool_include_prefix": one.pool_include_prefix and one.global_pool in ("avg", "token_avg"),
            "no_embed_class": one.no_embed_class and one.num_prefix_tokens > 0,
        }

    theirs = effects(other)
    return [
        f"{key}: {getattr(architecture, key)}"
        for key, value in effects(architecture).items()
        if key not in free and value != theirs[key]
    ]
