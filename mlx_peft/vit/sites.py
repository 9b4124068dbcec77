"""Where a method acts: linear layers inside the blocks, by name, and the blocks themselves, by number."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from mlx_peft.core.errors import UserError, shown
from mlx_peft.core.text import counted
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.shapes import shapes

Target = Literal["qkv", "q", "k", "v", "proj", "fc1", "fc2", "attention", "mlp", "all-linear"]
"""A target as it may be written; the last three are GROUPS, and spelled out when read."""

PARTS = ("q", "k", "v")
"""The thirds of a fused qkv's rows, from the top."""

LAYERS = {
    "qkv": "qkv",
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "proj": "proj",
    "fc1": "fc1",
    "fc1_g": "fc1",
    "fc1_x": "fc1",
    "fc2": "fc2",
}
"""The linear layers of a block by their last name, and the target that stands for each: SwiGLU has fc1 in two."""

GROUPS = {"attention": ("qkv", "proj"), "mlp": ("fc1", "fc2"), "all-linear": ("qkv", "proj", "fc1", "fc2")}
"""Names for several targets at once."""

WEIGHT = re.compile(rf"(blocks\.(\d+)\.(?:attn|mlp)\.({'|'.join(LAYERS)}))\.weight")


@dataclass(frozen=True)
class Site:
    """One linear layer that a method adapts.

    Attributes:
        path: ``blocks.3.attn.qkv``.
        outputs, inputs: the layer's widths.
        parts: which of q, k and v of its output are meant, in this order; empty for the whole layer.
    """

    path: str
    outputs: int
    inputs: int
    parts: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The layer's last name: ``qkv``."""
        return self.path.rpartition(".")[2]

    @property
    def adapted(self) -> int:
        """How many of the outputs are adapted."""
        return self.outputs // len(PARTS) * len(self.parts) if self.parts else self.outputs

    @property
    def count(self) -> int:
        """How many adapters of its own it has: one for each part, one for the whole layer."""
        return max(len(self.parts), 1)

    @property
    def rows(self) -> list[slice]:
        """Where the adapted outputs stand."""
        height = self.outputs // len(PARTS)
        starts = [PARTS.index(part) * height for part in self.parts]
        return [slice(start, start + height) for start in starts] if self.parts else [slice(0, self.outputs)]


def widths(sites: Iterable[Site]) -> tuple[int, int]:
    """The most inputs and the most outputs of one adapted layer, a part of a fused qkv being a layer of its own."""
    shapes = [(site.inputs, site.outputs // len(PARTS) if site.parts else site.outputs) for site in sites]
    return max(inputs for inputs, _ in shapes), max(outputs for _, outputs in shapes)


def _grouped(targets: Any) -> Any:
    """Group names spelled out; names in one text, with commas between them, as a list."""
    names = [name.strip() for name in targets.split(",")] if isinstance(targets, str) else targets
    if not isinstance(names, list | tuple):
        return targets
    return tuple(
        target for name in names for target in (GROUPS.get(name, (name,)) if isinstance(name, str) else (name,))
    )


def _each_layer_once(targets: tuple[Target, ...]) -> tuple[Target, ...]:
    if len(set(targets)) < len(targets):
        raise ValueError(f"a target is named twice in {list(targets)}")
    if "qkv" in targets and {"q", "k", "v"} & set(targets):
        raise ValueError("'qkv' already holds q, k and v: name either the whole or its parts")
    return targets


Targets = Annotated[
    tuple[Target, ...], BeforeValidator(_grouped), Field(min_length=1), AfterValidator(_each_layer_once)
]
"""The linear layers inside the blocks; q, k and v are parts of qkv; attention, mlp and all-linear are groups."""

OptionalTargets = Annotated[tuple[Target, ...], BeforeValidator(_grouped), AfterValidator(_each_layer_once)]
"""The same, or none."""

RANGE = re.compile(r"(first|last)\s*(\d{1,6})|(\d{1,6})\s*-\s*(\d{1,6})")


def _readable(blocks: Any) -> Any:
    """Block numbers in a list, one alone too, or a range."""
    numbers = [blocks] if isinstance(blocks, int) else blocks
    if isinstance(numbers, list | tuple) and numbers and all(type(number) is int for number in numbers):
        return tuple(numbers)
    if isinstance(blocks, str) and RANGE.fullmatch(blocks.strip()):
        return blocks
    raise ValueError(f"should be like 'last 4', 'first 6', '8-11', 3 or [0, 5, -1], not {shown(blocks)}")


Blocks = Annotated[tuple[int, ...] | str, BeforeValidator(_readable)]
"""Blocks by number from 0, negative ones from the end; or ``last 4``, ``first 6``, ``8-11`` (both included)."""


def chosen(blocks: tuple[int, ...] | str | None, depth: int) -> tuple[int, ...]:
    """The numbers of the blocks that are meant, in order; all of them for None.

    Raises:
        UserError: where the model has no such block.
    """
    if blocks is None:
        return tuple(range(depth))
    if isinstance(blocks, str):
        match = RANGE.fullmatch(blocks.strip())
        assert match is not None, blocks  # the schema has checked it
        end, count, low, high = match.groups()
        if end is None:
            wanted = list(range(int(low), int(high) + 1))
        elif end == "first":
            wanted = list(range(int(count)))
        else:
            wanted = list(range(depth - int(count), depth))
            if wanted and wanted[0] < 0:
                raise UserError(f"method.blocks: {blocks!r} is more than the model's {counted(depth, 'block')}")
    else:
        if outside := [block for block in blocks if not -depth <= block < depth]:
            raise UserError(f"method.blocks: the model has no block {outside[0]}: it has {depth}, counted from 0")
        wanted = [block % depth for block in blocks]
    if not wanted:
        raise UserError(f"method.blocks: {blocks!r} names no block")
    if wanted[-1] >= depth and isinstance(blocks, str):
        raise UserError(f"method.blocks: {blocks!r} goes past the model's last block, {depth - 1}")
    return tuple(sorted(set(wanted)))


def sites(architecture: Architecture, targets: Iterable[str], blocks: tuple[int, ...]) -> list[Site]:
    """The layers that ``targets`` name in some blocks, in the model's order.

    Raises:
        UserError: for a target that matches none.
    """
    parts = tuple(part for part in PARTS if part in targets)
    if architecture.qkv == "split":
        names = set(targets) - {"qkv"} | (set(PARTS) if "qkv" in targets else set())
    else:
        names = set(targets) - set(PARTS) | ({"qkv"} if parts else set())
    found = []
    for name, shape in shapes(architecture, num_classes=1).items():
        match = WEIGHT.fullmatch(name)
        if match and int(match[2]) in blocks and LAYERS[match[3]] in names:
            found.append(Site(match[1], shape[0], shape[1], parts if match[3] == "qkv" else ()))
    if missing := names - {LAYERS[site.name] for site in found}:
        raise UserError(f"method.targets: {sorted(missing)[0]!r} matches no layer of the model's blocks")
    return found
