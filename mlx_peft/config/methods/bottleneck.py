"""Methods that put bottlenecks into the blocks: down to a few channels and up again, mostly with an activation."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from mlx_peft.config.methods.base import Blockwise
from mlx_peft.config.methods.selective import LayerNorm
from mlx_peft.config.quantization import Quantization
from mlx_peft.core.bounds import Positive, Rank, Share
from mlx_peft.core.errors import UserError
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.shapes import Shapes
from mlx_peft.vit.sites import Site, sites


def _unmerged(activation: str) -> str:
    return (
        f"there is a {activation} between its two layers, so no weight can take them up; keep the adapter beside the "
        "model"
    )


class Bottlenecked(Blockwise):
    """A method of bottlenecks, down and up again, one at each of some places of a block.

    Class attributes:
        places: what of a block a bottleneck is put around, or its own name there; empty: the block itself.
    """

    places: ClassVar[tuple[str, ...]] = ("",)
    bottleneck: Rank

    def paths(self, architecture: Architecture) -> list[str]:
        """What has a bottleneck, in the model's order. Raises UserError where the model has no such block."""
        blocks = self.chosen_blocks(architecture)
        return [f"blocks.{block}{place and '.'}{place}" for block in blocks for place in self.places]

    def added(self, architecture: Architecture, quantization: Quantization | None = None) -> Shapes:
        dim, bottleneck = architecture.embed_dim, self.bottleneck
        layers = {
            "adapter_down.weight": (bottleneck, dim),
            "adapter_down.bias": (bottleneck,),
            "adapter_up.weight": (dim, bottleneck),
            "adapter_up.bias": (dim,),
        }
        return {f"{path}.{name}": shape for path in self.paths(architecture) for name, shape in layers.items()}


class AdaptFormer(Bottlenecked):
    """A bottleneck beside the MLP (Chen et al. 2022, arXiv 2205.13535): + s up(relu(down(norm2(x))))."""

    name: Literal["adaptformer"] = "adaptformer"
    unmerged: ClassVar[str | None] = _unmerged("ReLU")
    bottleneck: Rank = 64
    scale: Positive = Field(0.1, description="s")
    dropout: Share = Field(0.1, description="on the bottleneck")


class AdapterPlus(Bottlenecked):
    """Adapter+ (Steitz and Roth 2024, arXiv 2406.06820): behind each block x + s * up(gelu(down(x))), s by channel."""

    name: Literal["adapter_plus"] = "adapter_plus"
    unmerged: ClassVar[str | None] = _unmerged("GELU")
    bottleneck: Rank = 8
    dropout: Share = Field(0.0, description="on the bottleneck")
    drop_path: Share = Field(0.1, description="with which probability an image goes past a bottleneck in training")

    def added(self, architecture: Architecture, quantization: Quantization | None = None) -> Shapes:
        scales = {f"{path}.adapter_scale": (architecture.embed_dim,) for path in self.paths(architecture)}
        return super().added(architecture, quantization) | scales


class Houlsby(Bottlenecked):
    """Houlsby's adapter (2019, arXiv 1902.00751): y + up(gelu(down(y))) of attention's output y, and of the MLP's.

    Before each is added to the residual stream. The norms are trained too.
    """

    name: Literal["houlsby"] = "houlsby"
    places: ClassVar[tuple[str, ...]] = ("ls1", "ls2")
    unmerged: ClassVar[str | None] = _unmerged("GELU")
    bottleneck: Rank = 64
    dropout: Share = Field(0.0, description="on the bottlenecks")
    norms: bool = Field(True, description="train the norms' weights and biases too")

    def selected(self, architecture: Architecture) -> tuple[str, ...]:
        return LayerNorm(blocks=self.blocks).selected(architecture) if self.norms else ()


class RepAdapter(Bottlenecked):
    """RepAdapter (Luo et al. 2023, arXiv 2302.08106): x + s up(down(x)) of what attention and MLP read; up in groups.

    There is no activation, so that the layers that read it take it up.
    """

    name: Literal["repadapter"] = "repadapter"
    places: ClassVar[tuple[str, ...]] = ("norm1", "norm2")
    bottleneck: Rank = 8
    groups: Rank = Field(2, description="of channels, of which each reads a share of the bottleneck alone")
    scale: Positive = Field(1.0, description="s; the authors choose it for each task")
    dropout: Share = Field(0.1, description="on the bottleneck")

    @model_validator(mode="after")
    def _groups_divide_the_bottleneck(self) -> RepAdapter:
        if self.bottleneck % self.groups:
            raise ValueError(f"groups {self.groups} does not divide bottleneck {self.bottleneck}")
        return self

    def check(self, architecture: Architecture) -> None:
        super().check(architecture)
        if architecture.post_norm:
            raise UserError(
                "method repadapter stands between a norm and what reads it, and this model's blocks "
                "normalise after attention and MLP"
            )
        if architecture.embed_dim % self.groups:
            raise UserError(f"method.groups: {self.groups} does not divide the model's width, {architecture.embed_dim}")

    def added(self, architecture: Architecture, quantization: Quantization | None = None) -> Shapes:
        up = (architecture.embed_dim, self.bottleneck // self.groups)
        return {
            name: up if name.endswith("adapter_up.weight") else shape
            for name, shape in super().added(architecture, quantization).items()
        }

    def readers(self, architecture: Architecture) -> dict[str, list[Site]]:
        """The linear layers that read what comes out of each bottleneck, by its path."""
        found = {}
        for path in self.paths(architecture):
            _, block, place = path.split(".")
            found[path] = sites(architecture, (READ_BY[place],), (int(block),))
        return found


class Convpass(Bottlenecked):
    """Convpass (Jie and Deng 2022, arXiv 2207.07039): + s up(act(conv(act(down(norm(x)))))) beside attention and MLP.

    The 3x3 convolution goes over the grid of patches; a token that is no patch is a grid of its own.
    """

    name: Literal["convpass"] = "convpass"
    places: ClassVar[tuple[str, ...]] = ("bypass_attn", "bypass_mlp")
    unmerged: ClassVar[str | None] = _unmerged("QuickGELU")
    unmixed: ClassVar[str | None] = "its convolutions over the grid of patches are no scales and sums of a row's tokens"
    unreduced: ClassVar[str | None] = "its convolutions go over the whole grid of patches"
    bottleneck: Rank = 8
    scale: Positive = Field(1.0, description="s; the authors choose it for each task, from 0.01 to 100")
    conv: Literal["identity", "xavier"] = Field(
        "identity", description="what the convolution begins as; the authors choose it for each task"
    )
    dropout: Share = Field(0.1, description="on the bottleneck")

    def added(self, architecture: Architecture, quantization: Quantization | None = None) -> Shapes:
        layers = {"weight": (self.bottleneck, self.bottleneck, 3, 3), "bias": (self.bottleneck,)}
        convolutions = {
            f"{path}.adapter_conv.{name}": shape for path in self.paths(architecture) for name, shape in layers.items()
        }
        return super().added(architecture, quantization) | convolutions


READ_BY = {"norm1": "qkv", "norm2": "fc1"}
"""The target that reads what comes out of a norm."""
