"""Quantised bases: how many bits a weight has, which layers are quantised, and what of the others stays float.

Every linear layer inside the blocks is quantised: qkv, proj, fc1 (fc1_g and fc1_x), fc2. The patch embedding, norms and
layer scales, biases, tokens and positions, attention pooling and the heads stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from pydantic import Field

from mlx_peft.config.section import Section
from mlx_peft.core.bounds import Positive
from mlx_peft.core.errors import UserError
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.parameters import last
from mlx_peft.vit.shapes import Shapes
from mlx_peft.vit.sites import GROUPS, Site, chosen, sites

Bits = Literal[8, 6, 5, 4, 3, 2]
GroupSize = Literal[32, 64, 128]

WORD = 32
"""The unsigned integers that hold the codes have so many bits."""

CODES = ("weight", "scales", "biases")
"""The last names of a quantised layer's words, and of the scales and biases of its groups."""

SCALE = "lsq_scale"
"""The last name of a weight's trained scales."""


def is_scale(name: str) -> bool:
    """Whether the parameter is the trained scales of a weight, which ``qat`` adds under whatever method."""
    return last(name) == SCALE


class Quantization(Section):
    """MLX's affine format: so many consecutive inputs share a scale and a bias, and each weight is a code of few bits.

    In files and in memory a layer has ``weight`` (uint32 words, ``(out, in bits / 32)``), ``scales`` and ``biases``
    (``(out, in / group_size)``), and its own ``bias`` where it had one.
    """

    bits: Bits = Field(description="of a weight inside the blocks")
    group_size: GroupSize = Field(64, description="consecutive inputs that share a scale and a bias")

    def sites(self, architecture: Architecture) -> list[Site]:
        """The layers that are quantised.

        Raises UserError where the group does not divide a layer's width.
        """
        found = sites(architecture, GROUPS["all-linear"], chosen(None, architecture.depth))
        if unfit := [site for site in found if site.inputs % self.group_size]:
            widths = {site.name: site.inputs for site in unfit}
            layers = ", ".join(f"{name} (width {width})" for name, width in widths.items())
            fitting = [str(size) for size in get_args(GroupSize) if not any(site.inputs % size for site in found)]
            advice = f"groups of {' or '.join(fitting)} fit every layer" if fitting else "no group fits every layer"
            raise UserError(f"quantize.group_size: {self.group_size} does not divide the inputs of {layers}; {advice}")
        return found

    def stored(
        self, architecture: Architecture, unquantised: Mapping[str, tuple[int, ...]]
    ) -> dict[str, tuple[int, ...]]:
        """The shapes of a quantised model's tensors, from those of the plain one.

        Raises UserError where the group does not divide a layer's width.
        """
        result = dict(unquantised)
        for site in self.sites(architecture):
            result |= self.codes(site, site.path)
        return result

    def codes(self, site: Site, path: str) -> Shapes:
        """The shapes of a layer's words, scales and biases, in this order, where it lies at a path."""
        groups = (site.outputs, site.inputs // self.group_size)
        shapes = (site.outputs, site.inputs * self.bits // WORD), groups, groups
        return {f"{path}.{name}": shape for name, shape in zip(CODES, shapes, strict=True)}


class QAT(Section):
    """Quantisation-aware training: float weights are trained through the codes that they are to become.

    Each forward pass multiplies with scale * code + bias of the weight as it then is, the method's update in it; the
    gradient passes the rounding as if it were none (Bengio et al. 2013, arXiv 1308.3432). ``scales: learned``: a group
    is symmetric, and its scale is trained too, as the step size of LSQ (Esser et al. 2020, arXiv 1902.08153).
    """

    bits: Bits = Field(description="of a weight inside the blocks")
    group_size: GroupSize = Field(64, description="consecutive inputs that share a scale and a bias")
    scales: Literal["minmax", "learned"] = Field("minmax", description="from a group's extremes, or trained (LSQ)")
    lr_ratio: Positive = Field(
        0.01, description="learned: rate of the scales over the optimiser's; they are as small as that"
    )

    @property
    def format(self) -> Quantization:
        """What the trained model is stored as."""
        return Quantization(bits=self.bits, group_size=self.group_size)

    def sites(self, architecture: Architecture) -> list[Site]:
        """The layers whose weights are rounded. Raises UserError where the group does not divide a layer's width."""
        return self.format.sites(architecture)

    def added(self, architecture: Architecture) -> Shapes:
        """The scales that are trained, by name and shape."""
        if self.scales != "learned":
            return {}
        return {
            f"{site.path}.{SCALE}": (site.outputs, site.inputs // self.group_size) for site in self.sites(architecture)
        }


def described(quantization: Quantization | None) -> str:
    """``4 bits in groups of 64``, for a person."""
    return "null" if quantization is None else f"{quantization.bits} bits in groups of {quantization.group_size}"


def from_options(bits: int, group_size: int) -> Quantization:
    """What a person asks for by two numbers. Raises UserError where no such codes are known."""
    for name, value, known in (("bits", bits, get_args(Bits)), ("group_size", group_size, get_args(GroupSize))):
        if value not in known:
            raise UserError(f"{name} should be one of {', '.join(map(str, known))}, not {value}", arguments=(name,))
    return Quantization.model_validate({"bits": bits, "group_size": group_size})
