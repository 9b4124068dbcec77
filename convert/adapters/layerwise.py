"""Methods whose tensors each belong to one layer, under nearly the names that PEFT has for them.

What differs is told in a ``Layerwise``: how each tensor lies along the rows of a fused qkv, and what the configuration
says.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from convert.adapters.block_layers import by_kind, by_layer, must_ask_no_more, understood
from convert.adapters.format import Format
from convert.adapters.parts import note, parts_of, placed, taken
from convert.adapters.separate import is_separate, rows, separate, shared, stacked, together
from convert.adapters.targeting import target_modules, where
from mlx_peft.config.methods import MethodConfig
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.vit.parameters import is_head
from mlx_peft.vit.sites import PARTS


@dataclass(frozen=True)
class Side:
    """How a tensor lies along the rows of a fused qkv, whose parts PEFT does not know.

    Attributes:
        whole: a tensor of parts as that of the whole layer.
        own: the inverse; raises ValueError where there is more than the parts' own.
        apart: the tensor of a layer, by the names of q, k and v on layers of their own.
        joined: the inverse, of the separate layers in their order; raises ValueError where they are none.
    """

    whole: Callable[[np.ndarray, tuple[str, ...]], np.ndarray]
    own: Callable[[np.ndarray, tuple[str, ...]], np.ndarray]
    apart: Callable[[np.ndarray, str, tuple[str, ...]], dict[str, np.ndarray]]
    joined: Callable[[Sequence[np.ndarray], str], np.ndarray]


def _alike(shares: Sequence[np.ndarray], name: str) -> np.ndarray:
    if any(not np.array_equal(share, shares[0]) for share in shares):
        raise ValueError(f"q, k and v share the inputs of {name}, and have different tensors for them")
    return shares[0]


INPUTS = Side(
    whole=lambda tensor, parts: tensor,
    own=lambda tensor, parts: tensor,
    apart=lambda tensor, layer, parts: {separate(layer, part): tensor for part in PARTS},
    joined=_alike,
)
"""Of a layer's inputs, which q, k and v share: of whole layers alone."""

STACKED = Side(
    whole=lambda tensor, parts: tensor,
    own=lambda tensor, parts: tensor,
    apart=shared,
    joined=stacked,
)
"""As LoRA's A: what each part has, one after the other."""

PLACED = Side(whole=placed, own=taken, apart=rows, joined=stacked)
"""As LoRA's B: each part's block in its own rows and columns."""


def along(axis: int = 0, fill: float = 0.0) -> Side:
    """Of a layer's outputs, one after the other along an axis; ``fill`` of those that are not adapted."""

    def whole(tensor: np.ndarray, parts: tuple[str, ...]) -> np.ndarray:
        own = dict(zip(parts, np.split(tensor, len(parts), axis), strict=True))
        rest = np.full_like(own[parts[0]], fill)
        return np.concatenate([own.get(part, rest) for part in PARTS], axis)

    def own(tensor: np.ndarray, parts: tuple[str, ...]) -> np.ndarray:
        thirds = dict(zip(PARTS, np.split(tensor, len(PARTS), axis), strict=True))
        if any((third != fill).any() for part, third in thirds.items() if part not in parts):
            raise ValueError(f"what is not of {', '.join(parts)} should be {fill:g}")
        return np.concatenate([thirds[part] for part in parts], axis)

    def apart(tensor: np.ndarray, layer: str, parts: tuple[str, ...]) -> dict[str, np.ndarray]:
        names = [separate(layer, part) for part in parts or PARTS]
        return dict(zip(names, np.split(tensor, len(names), axis), strict=True))

    def joined(shares: Sequence[np.ndarray], name: str) -> np.ndarray:
        stacked(shares, name)  # of one shape
        return np.concatenate(shares, axis)

    return Side(whole, own, apart, joined)


Layers = Mapping[str, Tensors]
"""The tensors of each layer, by our names of them."""


@dataclass(frozen=True)
class Layerwise:
    """One method.

    Attributes:
        peft_type: as ``adapter_config.json`` has it.
        kind: the method's class.
        sides: how each of a layer's tensors lies, by our names of them.
        axes: likewise, how many it has along each axis, in words.
        written: the method's part of PEFT's configuration, by the method and the tensors as PEFT has them.
        options: the method's options, but for targets and blocks, by PEFT's configuration and the tensors.
        read: the configuration's keys that ``options`` knows, or that change nothing in a trained adapter.
        theirs: PEFT's names of tensors, where they are not ours.
        some: whether a layer has only some of these tensors.
        levelled: the tensors that PEFT wrote, as a method has them whose options are those of all its layers.
        moves: what of qkv PEFT would train further that is not trained here, for a person.
    """

    peft_type: str
    kind: type[MethodConfig]
    sides: Mapping[str, Side]
    axes: Mapping[str, tuple[str, ...]]
    written: Callable[[Any, Layers], dict[str, Any]]
    options: Callable[[dict[str, Any], Layers], dict[str, Any]]
    read: Collection[str]
    theirs: Mapping[str, str] = field(default_factory=dict)
    some: bool = False
    levelled: Callable[[dict[str, Any], Layers, Path], Layers] = lambda config, layers, path: layers
    moves: str = "rows move that are not trained here"

    @property
    def format(self) -> Format:
        """How its adapters lie on disk."""
        return Format(self.peft_type, self.pack, self.unpack, self.from_peft, self.apart, self.notes)

    def pack(self, method: Any, tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
        """Configuration and tensors for PEFT: parts of a fused qkv become an adapter of the whole."""
        packed = {name: tensor for name, tensor in tensors.items() if is_head(name)}
        layers: dict[str, Tensors] = {}
        for name, tensor in tensors.items():
            layer, _, last = name.rpartition(".")
            if not is_head(name):
                parts = parts_of(method.targets, layer)
                whole = self.sides[last].whole(tensor, parts) if parts else tensor
                layers.setdefault(layer, {})[last] = packed[f"{layer}.{self._name(last)}"] = whole
        modules = target_modules(layers, every_block=method.blocks is None)
        return {"target_modules": modules} | self.written(method, layers), packed

    def unpack(self, method: Any, packed: Tensors) -> Tensors:
        """What ``pack`` was given, bit for bit. Raises ValueError where the tensors are not of this method."""
        tensors, layers = by_kind(packed, self._names, self.peft_type, self.some)
        for layer, held in layers.items():
            parts = parts_of(method.targets, layer)
            for last, tensor in self._ours(held).items():
                tensors[f"{layer}.{last}"] = self.sides[last].own(tensor, parts) if parts else tensor
        return tensors

    def apart(self, method: Any, tensors: Tensors) -> Tensors:
        """The tensors with q, k and v on layers of their own."""
        found = {}
        for name, tensor in tensors.items():
            layer, _, last = name.rpartition(".")
            if is_head(name) or not layer.endswith(".qkv"):
                found[name] = tensor
            else:
                shares = self.sides[last].apart(tensor, layer, parts_of(method.targets, layer))
                found |= {f"{own}.{last}": share for own, share in shares.items()}
        return found

    def from_peft(self, config: dict[str, Any], packed: Tensors, path: Path) -> tuple[Any, Tensors]:
        """An adapter that PEFT itself wrote for a timm ViT.

        Raises:
            UserError: for what is more than the method on the linear layers of the blocks.
        """
        must_ask_no_more(config, self.read, path)
        found = by_layer(packed, self._names, self.peft_type, path, self.some)
        layers: Layers = {layer: self._ours(held) for layer, held in found.items()}
        self._must_have_axes(layers, path)
        with understood(self.kind, self.peft_type, path):
            layers = self._fused(self.levelled(config, layers, path))
        targets, blocks = where(config, layers, path)
        with understood(self.kind, self.peft_type, path):
            options = self.options(config, layers) | {"targets": targets, "blocks": blocks}
            method = self.kind.model_validate(options)
        tensors = {name: tensor for name, tensor in packed.items() if is_head(name)}
        for layer, own in together({name: (name, held) for name, held in layers.items()}).items():
            for last in own[0][1]:
                name, shares = f"{layer}.{last}", [held[last] for _, held in own]
                tensors[name] = self.sides[last].joined(shares, name) if is_separate(own[0][0]) else shares[0]
        return method, tensors

    def notes(self, method: Any, tensors: Tensors) -> list[str]:
        """What PEFT does not see in the file, and would do otherwise were it to train the adapter further."""
        return note(method.targets, tensors, "", self.moves)

    def _fused(self, layers: Layers) -> Layers:
        """The layers; where inputs are adapted, which q, k and v share, those three as the qkv that has the same."""
        if INPUTS not in self.sides.values():
            return layers
        found: dict[str, Tensors] = {}
        for layer, own in together({name: (name, held) for name, held in layers.items()}).items():
            if is_separate(own[0][0]) and len(own) == len(PARTS):
                joined = {
                    last: side.joined([held[last] for _, held in own], f"{layer}.{last}")
                    for last, side in self.sides.items()
                }
                found[layer] = joined
            else:
                found |= dict(own)
        return found

    def _must_have_axes(self, layers: Layers, path: Path) -> None:
        """Raises UserError where a tensor has not as many axes as it should, or nothing along one."""
        for layer, held in layers.items():
            for last, tensor in held.items():
                if tensor.ndim != len(self.axes[last]) or not tensor.size:
                    wanted = str(self.axes[last]).replace("'", "")
                    raise UserError(
                        f"{path}: {layer}.{self._name(last)} should have the shape {wanted}, not {tensor.shape}"
                    )

    def _ours(self, held: Tensors) -> Tensors:
        """A layer's tensors by our names of them."""
        return {last: held[self._name(last)] for last in self.sides if self._name(last) in held}

    def _name(self, last: str) -> str:
        return self.theirs.get(last, last)

    @property
    def _names(self) -> list[str]:
        return [self._name(last) for last in self.sides]
