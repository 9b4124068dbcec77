"""Two names for one tensor: a foreign layout as a list of pairs, read in either direction."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from convert.files import listed
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError, suggest

Change = Callable[[np.ndarray], np.ndarray]


def same(tensor: np.ndarray) -> np.ndarray:
    """The tensor as it is."""
    return tensor


@dataclass(frozen=True)
class Pair:
    """One of timm's tensors, and how another layout keeps it; ``{i}`` in the names stands for a block's number.

    Attributes:
        ours: timm's name.
        theirs: their names: of several, each is an equal share of our rows, in this order.
        to_ours, to_theirs: what makes one of their tensors our rows, and back.
    """

    ours: str
    theirs: tuple[str, ...]
    to_ours: Change = same
    to_theirs: Change = same


def pair(ours: str, *theirs: str, to_ours: Change = same, to_theirs: Change = same) -> list[Pair]:
    """One tensor, in a list, so that lists of pairs add up."""
    return [Pair(ours, theirs, to_ours, to_theirs)]


def layer(ours: str, *theirs: str) -> list[Pair]:
    """The weight and the bias of a layer."""
    return [Pair(f"{ours}.{kind}", tuple(f"{name}.{kind}" for name in theirs)) for kind in ("weight", "bias")]


def to_timm(tensors: Tensors, pairs: Iterable[Pair], what: str) -> Tensors:
    """A foreign checkpoint under timm's names.

    Args:
        what: the file, for an error.

    Raises:
        UserError: at a tensor that has no place in the layout, with the nearest name that has, and where only some of
            the tensors are there that make up one of ours.
    """
    places = [(_pattern(name), one, index) for one in pairs for index, name in enumerate(one.theirs)]
    found: dict[str, tuple[Pair, dict[int, tuple[str, np.ndarray]]]] = {}
    unknown = []
    for name, tensor in tensors.items():
        for pattern, one, index in places:
            if match := pattern.fullmatch(name):
                ours = one.ours.replace("{i}", match[1] if pattern.groups else "")
                found.setdefault(ours, (one, {}))[1][index] = (name, tensor)
                break
        else:
            unknown.append(name)
    blocks = _blocks(found)
    if unknown:
        known = {name.replace("{i}", block) for one in pairs for name in one.theirs for block in blocks}
        hint = suggest(unknown[0], known - tensors.keys(), 1)
        raise UserError(f"{what}: these tensors have no place in this layout: {listed(unknown)}{hint}")
    result, missing = {}, []
    for ours, (one, parts) in found.items():
        if len(parts) == len(one.theirs):
            changed = [_changed(parts[index], one.to_ours, what) for index in range(len(one.theirs))]
            result[ours] = changed[0] if len(changed) == 1 else _stacked(changed, ours, what)
        else:
            block = next(iter(re.findall(r"\d+", ours)), "")
            missing += [name.replace("{i}", block) for i, name in enumerate(one.theirs) if i not in parts]
    if missing:
        raise UserError(f"{what}: these tensors are missing: {listed(missing)}")
    return result


def from_timm(tensors: Tensors, pairs: Sequence[Pair]) -> Tensors:
    """timm's tensors under a foreign layout's names: views, where nothing has to change.

    Raises ValueError with the names of those that it has no place for.
    """
    places = [(_pattern(one.ours), one) for one in pairs]
    result, unknown = {}, []
    for name, tensor in tensors.items():
        for pattern, one in places:
            if match := pattern.fullmatch(name):
                shares = np.split(tensor, len(one.theirs)) if len(one.theirs) > 1 else [tensor]
                for theirs, share in zip(one.theirs, shares, strict=True):
                    result[theirs.replace("{i}", match[1] if pattern.groups else "")] = one.to_theirs(share)
                break
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(listed(unknown))
    return result


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\{i\}", r"(0|[1-9]\d{0,4})"))


def _blocks(names: Iterable[str]) -> set[str]:
    return {match[1] for name in names if (match := re.match(r"blocks\.(\d+)\.", name))} or {""}


def _changed(part: tuple[str, np.ndarray], change: Change, what: str) -> np.ndarray:
    name, tensor = part
    try:
        return change(tensor)
    except ValueError as error:
        raise UserError(f"{what}: {name} has the shape {tensor.shape}: {error}") from error


def _stacked(parts: list[np.ndarray], name: str, what: str) -> np.ndarray:
    if len({part.shape for part in parts}) > 1:
        shapes = dict.fromkeys(str(part.shape) for part in parts)
        raise UserError(f"{what}: the parts of {name} have different shapes: {listed(shapes)}")
    return np.concatenate(parts)
