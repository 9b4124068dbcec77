"""Simulated quantisation of a trained model, activations too: what may be asked for, and where numbers are rounded.

Everything is computed in float32 on numbers that stand for codes. Rounded are the weights of the linear layers inside
the blocks, whatever enters these layers, and both operands of attention's two products. Patch embedding, norms,
residual sums, layer scales, biases, tokens, attention pooling and heads stay float.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from mlx_peft.core.bounds import BatchSize, Seed
from mlx_peft.core.errors import UserError
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.sites import GROUPS, Site, chosen, sites

Width = Literal[32, 8, 6, 5, 4, 3, 2]
Calibration = Literal["minmax", "percentile", "repq"]
SoftmaxCodes = Literal["uniform", "log_sqrt2", "best"]

FLOAT = 32
"""What is not quantised counts as so many bits."""

ATTENTION = ("q", "k", "v", "softmax")
"""The operands of attention's products: q and k of the first, softmax and v of the second."""

NORMED = {"norm1": ("qkv", "q_proj", "k_proj", "v_proj"), "norm2": ("fc1", "fc1_g", "fc1_x")}
"""The norms of a block, and the layers that read what each gives."""

RATIOS = tuple(1 - step / 20 for step in range(11))
"""The shares of a range that are tried as its end: 1 to 0.5."""

SETTING = re.compile(r"w(\d+)a(\d+)", re.IGNORECASE)


class Simulation(BaseModel):
    """One way to quantise a trained model in simulation.

    Weights are symmetric, a scale for each output; activations uniform, a scale and a zero point for each tensor.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    weights: Width = Field(8, description="bits of a weight; 32: float")
    activations: Width = Field(8, description="bits of an activation; 32: float")
    calibration: Calibration = Field(
        "repq",
        description="minmax: a tensor's extremes; percentile: without its tails; repq: LayerNorm's channels one by "
        "one, reparametrised into one scale; of everything, weights too, the range with the least squared error",
    )
    percentile: float = Field(99.99, gt=50, le=100, description="of values below the range's end; percentile alone")
    softmax: SoftmaxCodes | None = Field(
        None,
        description="codes of attention's probabilities; best: in each block those with the smaller squared error; "
        "null: best with repq, uniform otherwise",
    )
    images: BatchSize = Field(32, description="training images to calibrate on")
    seed: Seed = Field(0, description="of the choice of these images")

    @property
    def name(self) -> str:
        """``W8A8``"""
        return f"W{self.weights}A{self.activations}"

    @property
    def softmax_codes(self) -> SoftmaxCodes:
        """The codes of attention's probabilities."""
        return self.softmax or ("best" if self.calibration == "repq" else "uniform")

    @property
    def probabilities(self) -> tuple[str, ...]:
        """Those that come into question."""
        return ("uniform", "log_sqrt2") if self.softmax_codes == "best" else (self.softmax_codes,)

    @property
    def ratios(self) -> tuple[float, ...]:
        """What a weight's scale may be, of the one that its output's largest weight asks for."""
        return RATIOS if self.calibration == "repq" else RATIOS[:1]

    @property
    def reparametrizes(self) -> bool:
        """Whether the norms take up a scale for each of their channels."""
        return self.calibration == "repq" and self.activations < FLOAT

    def check(self, architecture: Architecture) -> None:
        """Raises UserError where the reparametrisation needs what the model lacks."""
        if not self.reparametrizes:
            return
        lacking = []
        if architecture.norm_layer != "layernorm":
            lacking.append(f"{architecture.norm_layer} has no bias")
        if architecture.post_norm:
            lacking.append("norms stand behind attention and MLP")
        of_qkv = architecture.qkv_bias and architecture.qkv == "fused"
        for present, layers in ((of_qkv, "qkv"), (architecture.proj_bias, "fc1")):
            if not present:
                lacking.append(f"{layers} has no bias")
        if lacking:
            raise UserError(
                "calibration repq shifts LayerNorm's output, and the biases of the norm and of the layer after it take "
                f"that up; in this model {' and '.join(lacking)}: calibrate with minmax or percentile"
            )


def layers(architecture: Architecture) -> list[Site]:
    """The layers whose weights are quantised: every linear one inside the blocks."""
    return sites(architecture, GROUPS["all-linear"], chosen(None, architecture.depth))


def points(architecture: Architecture) -> list[str]:
    """Where an activation is quantised, in the model's order.

    A linear layer's path stands for its input; ``blocks.0.attn.q``, ``.k``, ``.v`` and ``.softmax`` are the operands of
    attention's products.
    """
    found = []
    for site in layers(architecture):
        if site.name == "proj":
            found += [site.path.removesuffix("proj") + operand for operand in ATTENTION]
        found.append(site.path)
    return found


def from_options(
    settings: Sequence[str],
    calibrations: Sequence[str],
    *,
    percentile: float,
    softmax: str | None,
    images: int,
    seed: int,
) -> list[Simulation]:
    """What a command line asks for: every calibration of every setting such as ``w4a8``.

    Raises UserError at what is not understood, and at a setting that is named twice.
    """
    widths = ", ".join(map(str, get_args(Width)))
    pairs = []
    for setting in settings:
        match = SETTING.fullmatch(setting)
        if match is None or any(int(bits) not in get_args(Width) for bits in match.groups()):
            raise UserError(
                f"{setting!r} is no setting: write the bits of weights and of activations, as in w8a8 or w4a8 "
                f"({widths}; 32 leaves them float)"
            )
        pairs.append((int(match[1]), int(match[2])))
    if unknown := [name for name in calibrations if name not in get_args(Calibration)]:
        raise UserError(
            f"the calibration should be one of {', '.join(get_args(Calibration))}, not {unknown[0]!r}",
            arguments=("calibration",),
        )
    if softmax not in (None, *get_args(SoftmaxCodes)):
        raise UserError(
            f"the codes of the softmax should be one of {', '.join(get_args(SoftmaxCodes))}, not {softmax!r}",
            arguments=("softmax",),
        )
    if not 50 < percentile <= 100:
        raise UserError(
            f"the percentile should be above 50 and at most 100, not {percentile:g}", arguments=("percentile",)
        )
    if images < 1 or seed < 0:
        raise UserError(
            f"the images should be 1 or more, not {images}, and the seed 0 or more, not {seed}",
            arguments=("images", "seed"),
        )
    if len(set(pairs)) < len(pairs) or len(set(calibrations)) < len(calibrations):
        raise UserError("a setting or a calibration is named twice")
    rest = {"percentile": percentile, "softmax": softmax, "images": images, "seed": seed}
    return [
        Simulation.model_validate({"weights": w, "activations": a, "calibration": name, **rest})
        for w, a in pairs
        for name in calibrations
    ]
