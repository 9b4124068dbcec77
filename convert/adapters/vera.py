"""VeRA and PVeRA as Hugging Face PEFT keeps them: two vectors a layer, and once for all layers the projections A and B.

PEFT knows no parts of a fused qkv. An adapter of parts has several times the rank there: each part has a copy of A of
its own, and a copy of B in the part's rows; whole layers have one more copy of both. A layer's lambda_d is zero for the
copies that are not its own, so that PEFT computes the same logits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convert.adapters.block_layers import by_kind, by_layer, must_ask_no_more, understood
from convert.adapters.copies import WHOLE, Copies, Matrix, copied, qkv
from convert.adapters.format import Format
from convert.adapters.parts import gathered, note, parts_of, spread
from convert.adapters.separate import is_separate, rows, stacked, together
from convert.adapters.targeting import target_modules, where
from convert.files import listed
from mlx_peft.adaptation.projections import projections
from mlx_peft.config.methods import PVeRA, VeRA
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.vit.parameters import is_head
from mlx_peft.vit.sites import PARTS

READ = {"d_initial", "init_weights", "projection_prng_key", "r", "save_projection"}


@dataclass(frozen=True)
class Vectors:
    """One of the two.

    Attributes:
        title: as a person writes it.
        kind: the method's class.
        written: what PEFT's configuration says beside of every such adapter.
        read: the keys that only this one has, and that change nothing in a trained adapter.
    """

    title: str
    kind: type[VeRA] | type[PVeRA]
    written: Mapping[str, Any]
    read: Collection[str]

    @property
    def format(self) -> Format:
        """How its adapters lie on disk."""
        return Format(self.title.upper(), self.pack, self.unpack, self.from_peft, self.apart, self.notes)

    @property
    def word(self) -> str:
        """What its tensors' names begin with."""
        name: str = self.kind.model_fields["name"].default
        return name

    @property
    def lambdas(self) -> tuple[str, str]:
        """The last names of lambda_d and lambda_b."""
        return f"{self.word}_lambda_d", f"{self.word}_lambda_b"

    @property
    def ours(self) -> tuple[str, str]:
        """The projections' names here."""
        return f"shared.{self.word}_A", f"shared.{self.word}_B"

    @property
    def theirs(self) -> tuple[str, str]:
        """And there: PEFT keeps them beside the model, not in it."""
        return f"base_model.{self.word}_A", f"base_model.{self.word}_B"

    def pack(self, method: Any, tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
        """Configuration and tensors for PEFT, the projections always among them."""
        own = any(is_separate(name.rpartition(".")[0]) for name in tensors)
        copies = Copies((WHOLE,), self.kind.halves) if own else self._copies(method)
        packed = {name: tensor for name, tensor in tensors.items() if name not in self.ours}
        layers, (lambda_d, lambda_b) = [], self.lambdas
        for name in packed:
            layer, _, last = name.rpartition(".")
            parts = parts_of(method.targets, layer)
            if last == lambda_d:
                packed[name] = copies.spread(packed[name], parts or (WHOLE,))
                layers.append(layer)
            elif last == lambda_b and parts:
                packed[name] = spread(packed[name], parts, 0)
        outputs = {layer: len(packed[f"{layer}.{lambda_b}"]) for layer in layers}
        shared = copies.stacked(tensors[self.ours[0]], tensors[self.ours[1]], outputs)
        config = {
            "r": shared[1].shape[1],
            "d_initial": method.d_initial,
            f"{self.word}_dropout": method.dropout,
            "projection_prng_key": method.projection_key,
            "save_projection": True,
            "bias": "none",
            "fan_in_fan_out": False,
            "init_weights": True,
            "target_modules": target_modules(layers, every_block=method.blocks is None),
            **self.written,
        }
        return config, packed | dict(zip(self.theirs, shared, strict=True))

    def apart(self, method: Any, tensors: Tensors) -> Tensors:
        """The tensors with q, k and v on layers of their own, as which parts of a fused qkv are taken already.

        Raises:
            UserError: where the whole qkv is adapted, whose rows are rows of B, of which q, k and v would share the
                first.
        """
        if "qkv" in method.targets:
            raise UserError(
                f"{self.title} on a whole qkv has no equal where q, k and v are layers of their own: they would share "
                "the rows of its projection, and have rows of their own here"
            )
        found: Tensors = {}
        for name, tensor in tensors.items():
            layer, _, last = name.rpartition(".")
            if last in self.lambdas:
                shares = rows(tensor, layer, parts_of(method.targets, layer))
                found |= {f"{own}.{last}": share for own, share in shares.items()}
            else:
                found[name] = tensor
        return found

    def unpack(self, method: Any, packed: Tensors) -> Tensors:
        """What ``pack`` was given, bit for bit. Raises ValueError where the tensors are not of this method."""
        copies, (lambda_d, lambda_b) = self._copies(method), self.lambdas
        tensors, layers = by_kind({n: t for n, t in packed.items() if n not in self.theirs}, self.lambdas, self.title)
        outputs = {}
        for layer, held in layers.items():
            parts, d, b = parts_of(method.targets, layer), held[lambda_d], held[lambda_b]
            tensors[f"{layer}.{lambda_d}"] = copies.gathered(d, parts or (WHOLE,))
            tensors[f"{layer}.{lambda_b}"] = gathered(b, parts, 0) if parts else b
            outputs[layer] = b.size
        if not outputs or (copies.names != (WHOLE,) and not qkv(outputs)):
            raise ValueError("the vectors of an adapted layer are missing")
        A, B = (packed.get(name, np.empty(0)) for name in self.theirs)
        largest = max(outputs.values())
        if A.ndim != 2 or B.shape != (largest, len(A) // copies.halves) or len(A) % copies.count:
            raise ValueError(f"layers of up to {largest} outputs cannot share A {A.shape} and B {B.shape}")
        taken = copies.taken(A, B, outputs)
        for name, one, other in zip(self.theirs, (A, B), copies.stacked(*taken, outputs), strict=True):
            if not np.array_equal(one, other):
                raise ValueError(f"{name} is not a copy of one projection for each of {', '.join(copies.names)}")
        return tensors | dict(zip(self.ours, taken, strict=True))

    def notes(self, method: Any, tensors: Tensors) -> list[str]:
        """What PEFT does not see in the file, and would do otherwise were it to train the adapter further."""
        there = f", and the rank is {len(copied(method.targets))} times as large"
        return note(method.targets, tensors, there, "vectors move that are not trained here")

    def from_peft(self, config: dict[str, Any], packed: Tensors, path: Path) -> tuple[VeRA | PVeRA, Tensors]:
        """An adapter that PEFT itself wrote for a timm ViT. Projections that it did not save are drawn from their key.

        Raises:
            UserError: for what is more than the method on the linear layers of the blocks, and for layers that cannot
                share the projections.
        """
        must_ask_no_more(config, READ | {f"{self.word}_dropout", *self.read}, path)
        lambda_b = self.lambdas[1]
        layers = by_layer({n: t for n, t in packed.items() if n not in self.theirs}, self.lambdas, self.title, path)
        targets, blocks = where(config, layers, path)
        with understood(self.kind, self.title, path):
            method = self.kind.model_validate({
                "rank": config["r"],
                "d_initial": config.get("d_initial", 0.1),
                "dropout": config.get(f"{self.word}_dropout", 0),
                "projection_key": config.get("projection_prng_key", 0),
                "targets": targets,
                "blocks": blocks,
            })  # fmt: skip
        outputs = {layer: tensors[lambda_b].size for layer, tensors in layers.items()}
        if config.get("save_projection", True):
            if missing := [name for name in self.theirs if name not in packed]:
                raise UserError(f"{path}: it says that its projections were saved, and {missing[0]} is missing")
            shared = packed[self.theirs[0]], packed[self.theirs[1]]
        else:
            shape = method.rank, _inputs(outputs, path), max(outputs.values())
            shared = projections(method.projection_key, *shape, self.kind.halves)
        self._must_share(layers, outputs, shared, method.rank, path)
        tensors = {name: tensor for name, tensor in packed.items() if is_head(name)}
        for layer, names in together({name: name for name in layers}).items():
            for last in self.lambdas:
                tensors[f"{layer}.{last}"] = stacked([layers[name][last] for name in names], f"{layer}.{last}")
        held = shared[0], shared[1][: max(outputs.values())]
        return method, tensors | dict(zip(self.ours, held, strict=True))

    def _copies(self, method: Any) -> Copies:
        return Copies(copied(method.targets), self.kind.halves)

    def _must_share(
        self,
        layers: Mapping[str, Tensors],
        outputs: Mapping[str, int],
        shared: tuple[Matrix, Matrix],
        rank: int,
        path: Path,
    ) -> None:
        A, B = shared
        for layer, tensors in layers.items():
            d = tensors[self.lambdas[0]]
            shapes = (d.shape, A.shape[:1], B.shape[1:])
            if shapes != ((self.kind.halves * rank,),) * 2 + ((rank,),) or outputs[layer] > len(B):
                raise UserError(
                    f"{path}: {layer} cannot share the projections A {A.shape} and B {B.shape}: it has "
                    f"{outputs[layer]} outputs and a lambda_d {d.shape}, and the rank is {rank}"
                )


def _inputs(outputs: Mapping[str, int], path: Path) -> int:
    """The most inputs of a layer, from the outputs of all: a plain MLP's fc2 has as many inputs as fc1 has outputs.

    Raises UserError where they do not say. A wrong number cannot go unseen: A would have another width than the model.
    """
    by_name = {layer.rpartition(".")[2]: count for layer, count in outputs.items()}
    inner = by_name.get("fc1", by_name.get("fc1_g"))
    own = next((by_name[part] for part in PARTS if part in by_name), by_name.get("qkv", 0) // len(PARTS))
    dim = by_name.get("proj", by_name.get("fc2", own))
    if not dim or ("fc2" in by_name and inner is None):
        raise UserError(
            f"{path}: its projections were not saved, and {listed(sorted(by_name))} alone do not say how large they "
            "are: save it again with save_projection=True"
        )
    return max(dim, inner) if inner and "fc2" in by_name else dim


VERA = Vectors("VeRA", VeRA, {}, ())
PVERA = Vectors("PVeRA", PVeRA, {"sample_at_inference": False, "generator_seed": None}, {"generator_seed"})
