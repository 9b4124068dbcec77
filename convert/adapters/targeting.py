"""Which layers an adapter is of, in PEFT's words and in ours."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from convert.files import listed
from mlx_peft.core import patterns
from mlx_peft.core.errors import UserError
from mlx_peft.vit.sites import LAYERS, PARTS

PLAIN = re.compile(r"[\w.]+")
"""A name, which as an expression fits at once or not at all."""


def target_modules(layers: Collection[str], every_block: bool) -> str:
    """PEFT's regular expression for layers inside the blocks: of every block, or of the layers' own.

    Where blocks have not the same layers, each is named.
    """
    names = sorted({_name(layer) for layer in layers})
    if every_block:
        return rf".*blocks\.\d+\..*\.({'|'.join(names)})"
    numbers = sorted({_block(layer) for layer in layers})
    if len({*layers}) < len(names) * len(numbers):
        return rf".*({'|'.join(map(re.escape, layers))})"
    return rf".*blocks\.({'|'.join(map(str, numbers))})\..*\.({'|'.join(names)})"


def target_of(layer: str) -> str:
    """The target that a layer belongs to: q, k and v, on layers of their own, to the parts of these names."""
    name = _name(layer)
    return name if name in PARTS else LAYERS[name]


def pattern(values: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The value that most layers have, and PEFT's pattern for the others: by last name where that is enough."""
    counts = Counter(values.values())
    default = min(counts, key=lambda value: (-counts[value], value))
    others: dict[str, Any] = {}
    for name in dict.fromkeys(map(_name, values)):
        own = {re.escape(layer): value for layer, value in values.items() if _name(layer) == name}
        if len(distinct := set(own.values())) == 1:
            own = {name: distinct.pop()}
        others |= {key: value for key, value in own.items() if value != default}
    return default, others


def where(
    config: dict[str, Any], layers: Collection[str], path: Path
) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """Targets and blocks of what PEFT adapted, None for all blocks.

    Raises:
        UserError: where not every adapted block has the same targets.
    """
    by_block: dict[int, set[str]] = {}
    for layer in layers:
        by_block.setdefault(_block(layer), set()).add(_name(layer))
    first = min(by_block)
    for block, names in sorted(by_block.items()):
        if names != by_block[first]:
            raise UserError(
                f"{path}: it adapts {listed(sorted(by_block[first]))} in block {first} but {listed(sorted(names))} in "
                f"block {block}; the targets must be the same in every adapted block"
            )
    if len(half := by_block[first] & {"fc1_g", "fc1_x"}) == 1:
        raise UserError(f"{path}: it adapts {half.pop()} alone; fc1_g and fc1_x are adapted together, as fc1")
    found = {target_of(name) for name in by_block[first]}
    targets = tuple(target for target in dict.fromkeys((*PARTS, *LAYERS.values())) if target in found)
    every = are_all(config, layers, partial(in_block, layers), path)
    return targets, None if every else tuple(sorted(by_block))


def named_out(config: Mapping[str, Any], layers: Sequence[str], heads: Sequence[str]) -> dict[str, Any]:
    """The fields of a configuration that PEFT runs as expressions, in Python's ``re``, as plain names.

    What PEFT makes of a trained adapter stays the same.

    Args:
        layers: that the adapter has tensors of, by their whole names, and ``heads`` likewise.

    Raises:
        ValueError: where an expression cannot be used.
    """
    exact: dict[str, Any] = {"target_modules": "|".join(map(re.escape, layers)), "modules_to_save": list(heads)}
    exact |= {field: None for field in ("exclude_modules", "layers_to_transform", "layers_pattern") if field in config}
    for field in ("rank_pattern", "alpha_pattern"):
        if (given := config.get(field)) and config.get("peft_type") == "ADALORA":  # whose keys are names of tensors
            exact[field] = {key: value for key, value in given.items() if PLAIN.fullmatch(key)}
        elif given:
            fitting = {layer: patterns.first_at_end(given, layer) for layer in layers}
            exact[field] = {re.escape(layer): given[key] for layer, key in fitting.items() if key is not None}
    if isinstance(inner := config.get("feedforward_modules"), str):
        exact["feedforward_modules"] = [layer for layer in layers if patterns.is_whole(inner, layer)]
    return exact


def are_all(
    config: Mapping[str, Any], layers: Collection[str], next_to: Callable[[int], Collection[str]], path: Path
) -> bool:
    """Whether the model has no blocks but the layers' own: PEFT would have adapted the layers of a further one.

    Where only Python's ``re`` knows the expression (``^(?!.*head)``), that is not known, and the blocks are named.

    Args:
        next_to: the names that PEFT would see of the same layers in another block.

    Raises:
        UserError: where an expression cannot be used.
    """
    blocks = sorted({_block(layer) for layer in layers if layer.startswith("blocks.")})
    if config.get("layers_to_transform") not in (None, []) or blocks != list(range(len(blocks))):
        return False
    try:
        target, excluded = (_rule(config.get(field)) for field in ("target_modules", "exclude_modules"))
        return any(target(layer) and not excluded(layer) for layer in next_to(len(blocks)))
    except patterns.UnknownError:
        return False  # which blocks there are, the tensors say
    except ValueError as error:
        raise UserError(f"{path}: target_modules or exclude_modules: {error}") from error


def in_block(layers: Collection[str], block: int) -> list[str]:
    """The same layers in another block."""
    return [re.sub(r"^blocks\.\d+", f"blocks.{block}", layer) for layer in layers]


def in_every_block(layers: Collection[str]) -> list[str]:
    """The layers, and the same ones in each block that any of them is in."""
    blocks = sorted({_block(layer) for layer in layers})
    return list(dict.fromkeys(other for block in blocks for other in in_block(layers, block)))


def _rule(modules: Any) -> Callable[[str], bool]:
    """PEFT's rule for ``target_modules``: a regular expression for the whole name, or a list of names' ends.

    Raises ValueError for what is neither, and where the expression cannot be used.
    """
    if isinstance(modules, str):
        patterns.check([modules])
        return partial(patterns.is_whole, modules)
    names = list(modules) if isinstance(modules, Collection) else modules or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"it should be an expression or a list of names, not {type(modules).__name__}")
    ends = frozenset(names)
    return lambda layer: any(layer[start:] in ends for start in _starts(layer))


def _starts(layer: str) -> list[int]:
    """Where a name begins, and where its ends do that stand after a dot."""
    return [0, *(at + 1 for at, letter in enumerate(layer) if letter == ".")]


def _block(layer: str) -> int:
    return int(layer.split(".")[1])


def _name(layer: str) -> str:
    return layer.rpartition(".")[2]
