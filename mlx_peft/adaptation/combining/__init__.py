"""Several adapters of one base made one: which methods' updates add up, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mlx_peft.adaptation.combining import bottlenecks, differences, low_rank
from mlx_peft.adaptation.combining.differences import Base
from mlx_peft.adaptation.combining.part import Part
from mlx_peft.config.combination import RULES, WAYS, Combination, How
from mlx_peft.config.methods import (
    IA3,
    SSF,
    AdaLoRA,
    AdapterPlus,
    AdaptFormer,
    BitFit,
    Convpass,
    FacT,
    Full,
    Houlsby,
    LayerNorm,
    Linear,
    LoHa,
    LoKr,
    LoRA,
    Method,
    MethodConfig,
    MiSS,
    PVeRA,
    QALoRA,
    RandLoRA,
    RepAdapter,
    VeRA,
)
from mlx_peft.config.quantization import Quantization
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError, told_of
from mlx_peft.vit.architecture import Architecture

__all__ = ["FAMILIES", "Part", "combine", "exact", "must_go_together"]

Combine = Callable[[Sequence[Part], Combination, Architecture, "Quantization | None", Base], tuple[Method, Tensors]]


@dataclass(frozen=True)
class Family:
    """What adapters of a method can become together.

    Attributes:
        name: of what they add to a model: those that add the same kind go together, of whatever method.
        exact: the way that gives exactly the weighted sum of the updates.
        ways: which there are.
        combine: makes one of several.
    """

    name: str
    exact: How
    ways: tuple[How, ...]
    combine: Combine


def _low_rank(ways: Sequence[How]) -> Family:
    return Family(
        "products of two factors",
        "cat",
        tuple(ways),
        lambda parts, way, model, codes, base: low_rank.combine(parts, way, model, codes),
    )


def _differences(name: str) -> Family:
    return Family(
        name,
        "linear",
        tuple(way for way in WAYS if way in RULES),
        lambda parts, way, model, codes, base: differences.combine(parts, way, model, base),
    )


def _bottlenecks(name: str) -> Family:
    return Family(name, "cat", ("cat",), lambda parts, way, model, codes, base: bottlenecks.combine(parts, model, base))


WHOLE: tuple[How, ...] = tuple(way for way in WAYS if way not in RULES)
"""These combine whole updates, and never their factors one to one, which are LoRA's alone."""

FAMILIES: Mapping[type[MethodConfig], Family] = {
    LoRA: _low_rank(WAYS),
    AdaLoRA: _low_rank(WHOLE),
    VeRA: _low_rank(WHOLE),
    FacT: _low_rank(WHOLE),
    LoHa: _low_rank(WHOLE),
    LoKr: _low_rank(WHOLE),
    MiSS: _low_rank(WHOLE),
    RandLoRA: _low_rank(WHOLE),
    PVeRA: _low_rank(WHOLE),
    QALoRA: Family(
        "products of two factors over groups of inputs",
        "cat",
        WAYS,
        lambda parts, way, model, codes, base: low_rank.combine_grouped(parts, way, model, codes),
    ),
    IA3: _differences("factors of layers' inputs or outputs"),
    SSF: _differences("factors and shifts behind every layer"),
    BitFit: _differences("other biases"),
    LayerNorm: _differences("other norms"),
    Full: _differences("other weights"),
    AdaptFormer: _bottlenecks("bottlenecks"),
    AdapterPlus: _bottlenecks("bottlenecks behind the blocks"),
    Houlsby: _bottlenecks("bottlenecks behind attention and MLP"),
    RepAdapter: _bottlenecks("bottlenecks before attention and MLP"),
    Convpass: _bottlenecks("bottlenecks with convolutions"),
}
"""Each method whose adapters can be combined. A linear probe adds nothing, and goes with all; any other method says in
``uncombined`` why its adapters cannot."""


def exact(parts: Sequence[Part]) -> How | None:
    """The way that gives exactly the weighted sum of the parts' updates; None where none has any."""
    own = _updating(parts)
    return FAMILIES[type(own[0].method)].exact if own else None


def must_go_together(parts: Sequence[Part], how: How | None) -> None:
    """Raises UserError where one of the parts' methods cannot be combined, not so, or not with another's.

    ``how`` is None for the exact way.
    """
    for part in parts:
        with told_of(part.name):
            part.method.must_combine()
    own = _updating(parts)
    for part in own:
        first, family = FAMILIES[type(own[0].method)], FAMILIES[type(part.method)]
        if family.name != first.name:
            raise UserError(
                f"{own[0].name} and {part.name} do not add up to one adapter: {own[0].method.name} has {first.name}, "
                f"and {part.method.name} {family.name}"
            )
        if how is not None and how not in family.ways:
            raise UserError(
                f"{part.name}: adapters of the method {part.method.name} cannot be combined by {how}, but by "
                f"{', '.join(family.ways)}; {family.exact} is exact, and what is done where nothing is said",
                arguments=("how",),
            )
    if how is not None and not own:
        raise UserError(f"these adapters have nothing but heads, and {how} is about all else", arguments=("how",))


def combine(
    parts: Sequence[Part],
    combination: Combination | None,
    architecture: Architecture,
    quantization: Quantization | None,
    base: Base,
) -> tuple[Method, Tensors]:
    """The method and the tensors of one adapter, without a head.

    Args:
        parts: ``must_go_together`` has passed them; theirs is one base.
        combination: None where none of them has more than a head.
        quantization: of the base.
        base: its tensors, for a method that trains them itself.

    Raises:
        UserError: as the ways do.
    """
    own = _updating(parts)
    if combination is None or not own:
        return Linear(), {}
    return FAMILIES[type(own[0].method)].combine(own, combination, architecture, quantization, base)


def _updating(parts: Sequence[Part]) -> list[Part]:
    """Those that change more than the head."""
    return [part for part in parts if type(part.method) in FAMILIES]
