"""Adapters over the models of other libraries: read as if timm had q, k and v on layers of their own, and written back.

What changes are names alone: those of layers, in the tensors and wherever PEFT's configuration speaks of layers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convert.adapters import halves
from convert.adapters.block_layers import must_ask_no_more
from convert.adapters.namings import BLOCK, NAMINGS, OWN, Naming, numbered
from convert.adapters.targeting import are_all, in_block, target_modules
from convert.files import listed
from convert.layouts.renaming import to_timm
from mlx_peft.core import patterns
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.vit.parameters import is_head

MOST_KINDS = 1000
"""Layers of so many kinds are compared with the namings: a model has a dozen."""

PATTERNS = ("rank_pattern", "alpha_pattern")
SHARED = "base_model."
"""What PEFT keeps beside the model, as VeRA's projections, has names that start with it."""


@dataclass(frozen=True)
class Translated:
    """What PEFT would have written for a timm ViT.

    Attributes:
        config: with the layers' names of timm's.
        tensors: likewise, the heads' among them.
        fields: of the architecture, that the head asks for.
        naming: the names that it had; None: timm's.
    """

    config: dict[str, Any]
    tensors: Tensors
    fields: Mapping[str, Any] = field(default_factory=dict)
    naming: Naming | None = None


def recognised(names: Collection[str], path: Path) -> Naming | None:
    """The naming whose layers an adapter's tensors are on; None where none of them is on a layer of any naming.

    Of several, it is the one whose class has what stands before the names, which is all that tells a DINOv2 of version
    4 from a ViT; then the one that uses the most of them: CLIP's tower has SigLIP's names, and no last norm.

    Raises:
        UserError: where some are, and no naming has them all.
    """
    owners = {match[1] for name in names if not name.startswith(SHARED) and (match := OWN.fullmatch(name))}
    others = [name for name in names if not (name.startswith(SHARED) or OWN.fullmatch(name))]
    kinds = {numbered(owner)[0]: owner for owner in owners}
    if len(kinds) > MOST_KINDS:
        return None
    must_be_readable(kinds.values(), path)
    unplaced: dict[str, list[str]] = {}
    fitting: dict[Naming, tuple[int, int]] = {}
    for naming in NAMINGS:
        heads = {name for one in naming.head for name in one.theirs}
        relevant = {kind: owner for kind, owner in kinds.items() if not re.fullmatch(naming.left_out, owner)}
        placed = {kind: layer for kind in relevant if (layer := naming.ours(kind)) is not None}
        if placed:
            odd = [owner for kind, owner in relevant.items() if kind not in placed]
            unplaced[naming.title] = odd + [name for name in others if name not in heads]
            if not unplaced[naming.title]:
                elsewhere = sum(kind != naming.prefix + naming.layers[layer] for kind, layer in placed.items())
                fitting[naming] = elsewhere, sum(map(naming.has_no_use_of, placed.values()))
    if fitting or not unplaced:
        return min(fitting, key=lambda naming: fitting[naming], default=None)
    title, odd = min(unplaced.items(), key=lambda item: len(item[1]))
    raise UserError(
        f"{path}: it is over no ViT that is known: of the nearest, {title}, these are no layers: {listed(sorted(odd))}"
    )


def must_be_readable(layers: Collection[str], path: Path) -> None:
    """Raises UserError where a layer is one that no adapter can be read of, with the reason."""
    reasons = {pattern: reason for naming in NAMINGS for pattern, reason in naming.refused.items()}
    for pattern, reason in reasons.items():
        if odd := [layer for layer in layers if re.fullmatch(pattern, layer)]:
            raise UserError(f"{path}: {listed(sorted(odd))}: {reason}")


def translated(config: dict[str, Any], tensors: Tensors, path: Path) -> Translated:
    """An adapter under timm's names, whatever names it has.

    Raises:
        UserError: where no naming has all of its layers, or two of its tensors are one here.
    """
    must_ask_no_more({"bias": config.get("bias")}, (), path)  # whose tensors are on no layer
    naming = recognised(tensors.keys(), path)
    if naming is None:
        return Translated(config, tensors)
    result: Tensors = {}
    heads: Tensors = {}
    modules: dict[str, str] = {}
    prefixes: set[str] = set()
    for name, tensor in tensors.items():
        own = OWN.fullmatch(name)
        if name.startswith(SHARED):
            result[name] = tensor
        elif own is None:
            heads[name] = tensor
        elif not re.fullmatch(naming.left_out, own[1]):
            layer, module = naming.adapted(own[1])
            if naming.has_no_use_of(layer):
                continue
            modules[layer] = module
            prefixes.add(module.removesuffix(naming.bare(layer)))
            if f"{layer}.{own[2]}" in result:
                raise UserError(f"{path}: {name} is there twice, under two names")
            result[f"{layer}.{own[2]}"] = tensor
    if len(prefixes) > 1:
        raise UserError(f"{path}: it is over several models: {listed(sorted(prefixes))}")
    what = str(path)
    head, fields = naming.head_to_ours(to_timm(heads, naming.head, what), what)
    config, result = halves.joined(_to_ours(config, modules, naming, min(prefixes), path), result, path)
    return Translated(config, naming.as_it_acts(result) | head, fields, naming)


def written(config: dict[str, Any], tensors: Tensors, naming: Naming, head: Tensors) -> tuple[dict[str, Any], Tensors]:
    """The inverse: configuration and tensors of PEFT's for timm, q, k and v apart, under the names of a naming.

    Args:
        head: what the naming's class has for the heads among the tensors.

    Raises:
        UserError: where the class has no such layer.
    """
    if naming.halves:
        config, tensors = halves.parted(config, tensors)
    layers: dict[str, str] = {}
    result: Tensors = {}
    for name, tensor in tensors.items():
        if is_head(name) or name.startswith(SHARED):
            result |= {} if is_head(name) else {name: tensor}
            continue
        own = OWN.fullmatch(name)
        assert own is not None, "it is one of PEFT's methods"
        try:
            result[f"{naming.theirs(own[1])}.{own[2]}"] = tensor
        except KeyError:
            raise UserError(f"{naming.title} has no layer of its own for {own[1]}", arguments=("to",)) from None
        layers[name] = own[1]
    return _to_theirs(config, layers, naming) | {
        "modules_to_save": sorted({name.rpartition(".")[0] for name in head})
    }, result | head


def _to_ours(
    config: dict[str, Any], modules: Mapping[str, str], naming: Naming, before: str, path: Path
) -> dict[str, Any]:
    """A configuration with our layers' names in place of theirs.

    Args:
        modules: what PEFT adapts, by our layers' names.
        before: stands before the names of the model's layers.
    """

    def next_to(block: int) -> list[str]:
        return [before + naming.bare(layer) for layer in in_block(modules, block)]

    every = are_all(config, modules, next_to, path)
    ours = {layer: layer for layer in modules}
    changed = {name: _moved(config[name], modules, ours, {}) for name in PATTERNS if config.get(name)}
    unsaid = {name: None for name in ("exclude_modules", "layers_to_transform", "layers_pattern") if name in config}
    return config | changed | unsaid | {"target_modules": target_modules(modules, every)}


def _to_theirs(config: dict[str, Any], tensors: Mapping[str, str], naming: Naming) -> dict[str, Any]:
    """The inverse: expressions that fit the same layers. ``tensors``: our layers by the names of their tensors."""
    modules = {layer: naming.module(layer) for layer in tensors.values()}
    ours = {layer: layer for layer in modules}
    changed: dict[str, Any] = {}
    for name in ("target_modules", "feedforward_modules"):
        if isinstance(rule := config.get(name), str):
            changed[name] = _expression(rule, [layer for layer in modules if patterns.is_whole(rule, layer)], naming)
    for name in PATTERNS:
        if config.get(name):
            changed[name] = _moved(config[name], ours, modules, tensors)
    return config | changed


def _moved(
    pattern: Mapping[str, Any], before: Mapping[str, str], after: Mapping[str, str], tensors: Mapping[str, str]
) -> dict[str, Any]:
    """A pattern of PEFT's for layers of other names, each by its whole name.

    Args:
        before: names by which it goes, by our layers' names; ``after``: by which it is to go.
        tensors: our layers by the names of tensors, which are keys in AdaLoRA's.
    """
    keys = pattern.keys()
    if tensors and keys <= tensors.keys():
        return {key.replace(tensors[key], after[tensors[key]]): value for key, value in pattern.items()}
    found = {layer: patterns.first_at_end(keys, name) for layer, name in before.items()}
    return {re.escape(after[layer]): pattern[key] for layer, key in found.items() if key is not None}


def _expression(rule: str, layers: Collection[str], naming: Naming) -> str:
    """What fits the modules of some layers, whole; of all blocks where ``rule``, over our names, does too."""
    blocks: dict[str, dict[str, None]] = {}
    for layer in layers:
        _, number = numbered(layer, BLOCK)
        blocks.setdefault(numbered(naming.module(layer))[0], {})[number] = None
    every = all(patterns.is_whole(rule, layer) for layer in in_block(layers, 9999))
    numbers = {kind: r"\d+" if every else f"({'|'.join(found)})" for kind, found in blocks.items()}
    return "|".join(re.escape(kind).replace(r"\{i\}", numbers[kind]) for kind in sorted(numbers))
