"""What the formats of PEFT's methods share: a strict reading of what PEFT wrote, and the parts of a fused qkv."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convert.files import listed
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError, shortened
from mlx_peft.vit.parameters import is_head
from mlx_peft.vit.sites import LAYERS, PARTS

PATH = rf"blocks\.(?:0|[1-9][0-9]{{0,3}})\.(?:attn|mlp)\.(?:{'|'.join(LAYERS)})"
"""The path of a linear layer in a block, whose number has one spelling."""

LAYER = re.compile(rf"({PATH})\.(\w+)")
"""A tensor of a linear layer in a block: the layer's path, and the tensor's last name."""

NO_MATTER = {
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "revision",
    "target_modules",
    "task_type",
}
"""These keys of every method of PEFT's change nothing in the forward pass, or say what the tensors' names say too."""


def must_be_plain(config: Mapping[str, Any], known: Collection[str], path: Path) -> None:
    """Raises UserError where an adapter's configuration asks for more than the keys that are ``known``."""
    odd = {key: value for key, value in config.items() if value and key not in NO_MATTER | {*known}}
    if config.get("bias", "none") != "none":
        odd["bias"] = config["bias"]
    if odd:
        told = listed(f"{key}: {shortened(str(value), 60)}" for key, value in odd.items())
        raise UserError(f"{path}: not supported: {told}")


def by_layer(packed: Tensors, kinds: Collection[str], method: str, path: Path) -> dict[str, Tensors]:
    """The tensors of each layer by their last names, heads left out.

    Raises:
        UserError: for a tensor that is none of the ``kinds`` of a linear layer in a block, and for a layer without one.
    """
    found: dict[str, Tensors] = {}
    unknown = []
    for name, tensor in packed.items():
        match = LAYER.fullmatch(name)
        if match and match[2] in kinds:
            found.setdefault(match[1], {})[match[2]] = tensor
        elif not (is_head(name) and name.partition(".")[2] in ("weight", "bias")):
            unknown.append(name)
    if unknown:
        raise UserError(f"{path}: tensors that are no {method} of a linear layer in a block: {listed(sorted(unknown))}")
    if not found:
        raise UserError(f"{path}: no {method} tensors in it")
    for layer, tensors in found.items():
        if missing := sorted({*kinds} - tensors.keys()):
            raise UserError(f"{path}: {layer} has no {listed(missing)}")
    return found


def parts_of(targets: Collection[str], layer: str) -> tuple[str, ...]:
    """Which of q, k and v of a layer are adapted; empty for all of it."""
    return tuple(part for part in PARTS if part in targets) if layer.endswith(".qkv") else ()


def spread(values: np.ndarray, parts: Sequence[str], fill: float, among: Sequence[str] = PARTS) -> np.ndarray:
    """The parts' values, one after the other, put in their places ``among`` all parts; ``fill`` for the others."""
    rows = values.reshape(len(parts), -1)
    whole = np.full((len(among), rows.shape[1]), fill, np.float32)
    whole[[among.index(part) for part in parts]] = rows
    return whole.ravel()


def gathered(whole: np.ndarray, parts: Sequence[str], fill: float, among: Sequence[str] = PARTS) -> np.ndarray:
    """The inverse of ``spread``. Raises ValueError where another part has other values than ``fill``."""
    if whole.ndim != 1 or len(whole) % len(among):
        raise ValueError(f"a tensor of {len(among)} parts has the shape {whole.shape}")
    rows = whole.reshape(len(among), -1)
    if any((row != fill).any() for row, part in zip(rows, among, strict=True) if part not in parts):
        raise ValueError(f"what is not of {', '.join(parts)} should be {fill:g}")
    own: np.ndarray = rows[[among.index(part) for part in parts]].ravel()
    return own
