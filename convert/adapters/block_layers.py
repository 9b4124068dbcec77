"""What the formats of PEFT's methods share: a strict reading of what PEFT wrote of linear layers in the blocks."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from convert.files import listed
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError, shortened, shown
from mlx_peft.core.problems import reason
from mlx_peft.vit.parameters import is_head
from mlx_peft.vit.sites import LAYERS, PARTS

PATH = rf"blocks\.(?:0|[1-9][0-9]{{0,3}})\.(?:attn|mlp)\.(?:{'|'.join((*LAYERS, *PARTS))})"
"""The path of a linear layer in a block, whose number has one spelling; q, k and v may be layers of their own."""

LAYER = re.compile(rf"({PATH})\.(\w+(?:\.weight)?)")
"""A tensor of a linear layer in a block: the layer's path, and the tensor's name in it."""

NO_MATTER = {
    "auto_mapping",
    "base_model_name_or_path",
    "bias",  # see must_ask_no_more
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


def must_ask_no_more(config: Mapping[str, Any], known: Collection[str], path: Path, advice: str = "") -> None:
    """Raises UserError, with ``advice`` behind it, where a configuration asks for more than the keys ``known``."""
    odd = {key: value for key, value in config.items() if value and key not in NO_MATTER | {*known}}
    if config.get("bias") not in (None, False, "none"):
        odd["bias"] = config["bias"]
    if odd:
        options = listed(f"{key}: {shortened(str(value), 60)}" for key, value in odd.items())
        raise UserError(f"{path}: its configuration has options that are not supported: {options}{advice}")


@contextmanager
def understood(kind: type[BaseModel], method: str, path: Path) -> Iterator[None]:
    """Within it, whatever a configuration of PEFT's lacks, or has of another type, raises UserError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise UserError(f"{path}: its {method} configuration is not understood: {reason(error, kind)}") from error


def must_be_tables(config: Mapping[str, Any], path: Path) -> None:
    """Raises UserError where a pattern of ranks or of alphas is none: something else than values by layers' names."""
    for name in ("rank_pattern", "alpha_pattern"):
        if not isinstance(given := config.get(name), Mapping | None):
            raise UserError(f"{path}: {name} should be an object of values by the names of layers, not {shown(given)}")


def must_be_numbers(config: Mapping[str, Any], alpha: str, path: Path) -> None:
    """Raises UserError where a rank or an alpha, whose key is ``alpha``, is none: of all layers, or of a pattern's.

    With an alpha of 0 an adapter would add nothing.
    """
    for key, pattern, kinds, what in (
        ("r", "rank_pattern", (int,), "a whole"),
        (alpha, "alpha_pattern", (int, float), "a finite"),
    ):
        for value in (config[key], *(config.get(pattern) or {}).values()):
            if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < math.inf:
                raise UserError(f"{path}: {key} should be {what} number above 0, not {shown(value)}")


def must_have_rank(layer: str, rank: int, said: int, path: Path) -> None:
    """Raises UserError where the tensors of a layer have another rank than a configuration says."""
    if rank != said:
        raise UserError(f"{path}: {layer} has the rank {rank}, but its configuration says {said}")


def by_kind(
    packed: Tensors, kinds: Collection[str], method: str, some: bool = False
) -> tuple[Tensors, dict[str, Tensors]]:
    """The heads' tensors by name, and those of each layer by their names in it.

    Raises ValueError for a tensor that is none of the ``kinds`` of a linear layer in a block, and for a layer that has
    not all of them, unless ``some`` says that a layer need not.
    """
    heads: Tensors = {}
    layers: dict[str, Tensors] = {}
    unknown = []
    for name, tensor in packed.items():
        match = LAYER.fullmatch(name)
        if match and match[2] in kinds:
            layers.setdefault(match[1], {})[match[2]] = tensor
        elif is_head(name) and name.partition(".")[2] in ("weight", "bias"):
            heads[name] = tensor
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(f"tensors that are no {method} of a linear layer in a block: {listed(sorted(unknown))}")
    for layer, tensors in layers.items():
        if not some and (missing := sorted({*kinds} - tensors.keys())):
            raise ValueError(f"{layer} has no {listed(missing)}")
    return heads, layers


def by_layer(
    packed: Tensors, kinds: Collection[str], method: str, path: Path, some: bool = False
) -> dict[str, Tensors]:
    """The tensors of each layer by their names in it, heads left out.

    Raises:
        UserError: as ``by_kind``, and where there is no such layer.
    """
    try:
        _, layers = by_kind(packed, kinds, method, some)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    if not layers:
        raise UserError(f"{path}: no {method} tensors in it")
    return layers
