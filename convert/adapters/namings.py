"""What other libraries call the layers that adapters are on: a naming for each of their model classes.

The names are those of ``convert.layouts``. Where q, k and v are layers of their own, they are called so here too:
``blocks.3.attn.q`` is a third of timm's ``blocks.3.attn.qkv``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from convert.adapters import attention
from convert.layouts import torchvision, transformers, transformers_names
from convert.layouts.renaming import Pair, from_timm
from convert.layouts.transformers_classes import VARIANTS, Variant
from mlx_peft.core.border import Tensors
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.sites import PARTS

OWN = re.compile(r"(.+)\.((?:lora|randlora|vera|pvera|ia3|ln_tuning|oft|boft|road|hada|lokr|miss)_\w+(?:\.\w+)?)")
"""A tensor that one of PEFT's methods adds: the layer's name, and the tensor's name in it."""

NUMBER = re.compile(r"((?:^|\.)layers?\.(?:encoder_layer_)?)(0|[1-9]\d{0,3})(?=\.)")
"""Where a layer's name has its block's number."""

BLOCK = re.compile(r"(^blocks\.)(\d+)(?=\.)")
"""The same in one of timm's."""


def _no_change(tensors: Tensors, what: str) -> tuple[Tensors, Mapping[str, Any]]:
    return tensors, {}


@dataclass(frozen=True, eq=False)
class Naming:
    """What one model class of another library calls its layers and heads.

    Attributes:
        title: the class and its library, for a person.
        library: that has the class: a name in ``torch_ref.tools.foreign``.
        layers: timm's names of layers and norms, and theirs; ``{i}`` stands for a block's number.
        head: of the classifiers.
        prefix: stands before the names of layers, not of heads.
        modules: the module that PEFT adapts, by our layers' names, where that is not the layer itself.
        unused: layers that the class has and does not use, as a pattern of our names.
        left_out: a pattern of names that no classifier of images needs.
        refused: layers that no adapter can be read of, as patterns of their names, and why.
        now: what the library calls the same today; None: it is what it calls them today.
        head_to_ours, head_to_theirs: what more than a name is different in the heads.
        as_it_acts: PEFT's tensors under timm's names, as what they do there.
        completed: PEFT's configuration and tensors, with what it adapts there beside. Raises UserError where it cannot.
    """

    title: str
    library: str
    layers: Mapping[str, str]
    head: list[Pair]
    prefix: str = ""
    modules: Mapping[str, str] = field(default_factory=dict)
    unused: str = ""
    left_out: str = ""
    refused: Mapping[str, str] = field(default_factory=dict)
    now: Naming | None = None
    head_to_ours: Callable[[Tensors, str], tuple[Tensors, Mapping[str, Any]]] = _no_change
    head_to_theirs: Callable[[Tensors, Architecture], Tensors] = lambda tensors, architecture: tensors
    as_it_acts: Callable[[Tensors], Tensors] = lambda tensors: tensors
    completed: Callable[[dict[str, Any], Tensors], tuple[dict[str, Any], Tensors]] = lambda config, tensors: (
        config,
        tensors,
    )

    @property
    def separate(self) -> bool:
        """Whether q, k and v are layers of their own."""
        return f"blocks.{{i}}.attn.{PARTS[0]}" in self.layers

    @property
    def halves(self) -> bool:
        """Whether the first layer of a gated MLP is in halves."""
        return "blocks.{i}.mlp.fc1_g" in self.layers and "blocks.{i}.mlp.fc1" not in self.layers

    def ours(self, template: str) -> str | None:
        """Our name of a layer, whatever stands before theirs; None where it is no layer of the class."""
        fitting = (ours for ours, theirs in self.layers.items() if f".{template}".endswith(f".{theirs}"))
        return next(fitting, None)

    def has_no_use_of(self, layer: str) -> bool:
        """Whether the class does without one of its layers, by our name."""
        return re.fullmatch(self.unused, f"{layer}.weight") is not None

    def theirs(self, layer: str) -> str:
        """Their name of one of our layers. Raises KeyError where the class has no such layer."""
        template, number = numbered(layer, BLOCK)
        return f"{self.prefix}{self.layers[template]}".replace("{i}", number)

    def adapted(self, owner: str) -> tuple[str, str]:
        """Our name of the layer that a tensor belongs to, and the module that PEFT adapts for it, whatever is before.

        Raises ValueError where the class has no such layer.
        """
        kind, number = numbered(owner)
        ours = self.ours(kind)
        if ours is None:
            raise ValueError(f"{owner} is no layer of {self.title}")
        module = kind.removesuffix(self.layers[ours]) + self.modules.get(ours, self.layers[ours])
        return ours.replace("{i}", number), module.replace("{i}", number)

    def bare(self, layer: str) -> str:
        """The module that PEFT adapts for one of our layers, without the prefix. Raises KeyError likewise."""
        template, number = numbered(layer, BLOCK)
        return self.modules.get(template, self.layers[template]).replace("{i}", number)

    def module(self, layer: str) -> str:
        """The same, whole."""
        return f"{self.prefix}{self.bare(layer)}"


def numbered(name: str, place: re.Pattern[str] = NUMBER) -> tuple[str, str]:
    """A name with ``{i}`` for its block's number, and the number; empty where it has none."""
    match = place.search(name)
    return (name, "") if match is None else (f"{name[: match.end(1)]}{{i}}{name[match.end() :]}", match[2])


def layers_of(pairs: Iterable[Pair]) -> dict[str, str]:
    """The names of layers from those of their weights: q, k and v, and the halves of SwiGLU, where they are such."""
    found = {}
    for one in pairs:
        if not all(name.endswith(".weight") for name in (one.ours, *one.theirs)):
            continue
        ours, theirs = one.ours.removesuffix(".weight"), [name.removesuffix(".weight") for name in one.theirs]
        if len(theirs) == 1:
            found[ours] = theirs[0]
        elif len(theirs) == len(PARTS):
            found |= {f"{ours.removesuffix('qkv')}{part}": name for part, name in zip(PARTS, theirs, strict=True)}
        else:  # SwiGLU's gate and value
            found |= {f"{ours}_{half}": name for half, name in zip("gx", theirs, strict=True)}
    return found


def _of_transformers(name: str, variant: Variant, gated: bool) -> tuple[Naming, Naming]:
    """One of its classes, as version 5 calls its layers, and as version 4 did."""
    pairs = variant.pairs(Architecture(mlp_layer="swiglu_packed" if gated else "mlp"))
    common: dict[str, Any] = {
        "library": "transformers",
        "head": variant.head,
        "prefix": variant.prefix,
        "unused": variant.unused,
        "left_out": transformers_names.TEXT,
        "head_to_ours": partial(_head_to_ours, variant),
        "head_to_theirs": partial(_head_to_theirs, variant),
    }
    now = Naming(f"transformers' {name}", layers=layers_of(transformers_names.in_memory(pairs)), **common)
    return now, Naming(f"transformers 4's {name}", layers=layers_of(pairs), now=now, **common)


def _head_to_ours(variant: Variant, tensors: Tensors, what: str) -> tuple[Tensors, Mapping[str, Any]]:
    return transformers.head_to_ours(tensors, variant, what)


def _head_to_theirs(variant: Variant, tensors: Tensors, architecture: Architecture) -> Tensors:
    return transformers.head_to_theirs(tensors, variant, architecture)


TRANSFORMERS = {
    (name, gated): _of_transformers(name, variant, gated)
    for gated in (False, True)
    for name, variant in VARIANTS.items()
    if variant.adapted
}
"""By class, and whether its MLP is gated: the naming of version 5, and that of version 4."""

TORCHVISION = Naming(
    "torchvision's VisionTransformer",
    "torchvision",
    layers_of(torchvision.PAIRS) | torchvision.ATTENTION,
    [one for one in torchvision.PAIRS if one.ours.startswith("head.")],
    refused={
        r".*\.self_attention\.out_proj": "torch's attention never runs its out_proj, so that PEFT's adapter of it does "
        "nothing: in PEFT, name self_attention, which has both projections adapted"
    },
    modules={"blocks.{i}.attn.proj": torchvision.ATTENTION["blocks.{i}.attn.qkv"]},
    head_to_theirs=lambda tensors, architecture: from_timm(tensors, torchvision.PAIRS),
    as_it_acts=attention.as_it_acts,
    completed=attention.paired,
)
NAMINGS = (*(naming for both in TRANSFORMERS.values() for naming in both), TORCHVISION)
