"""Methods that put scales or prompts into the model."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from mlx_peft.config.methods.base import Blockwise, Targeted
from mlx_peft.config.methods.selective import BLOCK
from mlx_peft.config.quantization import Quantization
from mlx_peft.core.bounds import Rank, Share
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.parameters import is_head
from mlx_peft.vit.shapes import Shapes, shapes
from mlx_peft.vit.sites import LAYERS, OptionalTargets, Targets


class IA3(Targeted):
    """(IA)^3 (Liu et al. 2022, arXiv 2205.05638): learnt factors on keys, values and the feed-forward layer's input.

    y = (W x + b) * l on the output side; y = W (x * l) + b for the feed-forward layers.
    """

    name: Literal["ia3"] = "ia3"
    in_peft: ClassVar[bool] = True
    targets: Targets = ("k", "v", "fc2")
    feedforward: OptionalTargets | None = Field(
        None, description="the targets that are scaled on their input; null: fc2, where it is one"
    )

    @model_validator(mode="after")
    def _inputs_are_of_whole_layers(self) -> IA3:
        if stray := [name for name in self.inputs if name not in self.targets]:
            raise ValueError(f"feedforward names {stray[0]!r}, which is not among the targets {list(self.targets)}")
        if parts := [name for name in self.inputs if name in ("q", "k", "v")]:
            raise ValueError(f"{parts[0]!r} has no input of its own: q, k and v share qkv's")
        return self

    @property
    def inputs(self) -> tuple[str, ...]:
        """The targets that are scaled on their input."""
        if self.feedforward is None:
            return tuple(name for name in self.targets if name == "fc2")
        return self.feedforward

    def added(self, architecture: Architecture, quantization: Quantization | None = None) -> Shapes:
        return {
            f"{site.path}.ia3_l": (site.inputs if LAYERS[site.name] in self.inputs else site.adapted,)
            for site in self.sites(architecture)
        }


class SSF(Blockwise):
    """Scaling and shifting features (Lian et al. 2022, arXiv 2210.08823): x * scale + shift after every operation.

    After the patch embedding, the norms and the linear layers; restricted to some blocks, inside them alone.
    """

    name: Literal["ssf"] = "ssf"

    def layers(self, architecture: Architecture) -> dict[str, int]:
        """The layers that are scaled and shifted, by path, each with its width: all that have a weight, heads apart.

        Raises UserError where the model has no such block.
        """
        blocks = set(self.chosen_blocks(architecture))
        found = {}
        for name, shape in shapes(architecture, num_classes=1).items():
            path, _, last = name.rpartition(".")
            match = BLOCK.match(name)
            inside = self.blocks is None if match is None else int(match[1]) in blocks
            if last == "weight" and inside and not is_head(name):
                found[path] = shape[0]
        return found

    def added(self, architecture: Architecture, quantization: Quantization | None = None) -> Shapes:
        layers = self.layers(architecture).items()
        return {f"{path}.{name}": (width,) for path, width in layers for name in ("ssf_scale", "ssf_shift")}


class VPT(Blockwise):
    """Visual prompt tuning (Jia et al. 2022, arXiv 2203.12119): trained tokens beside the image's.

    Shallow: they enter before the first of the blocks and leave after the last. ``deep``: each block has its own.
    """

    name: Literal["vpt"] = "vpt"
    unmerged: ClassVar[str | None] = (
        "its prompts are tokens that every image attends to, so no weight can take them up; keep the adapter beside "
        "the model"
    )
    uncombined: ClassVar[str | None] = (
        "its prompts are tokens that attention weighs against all others, so that those of two do together what is no "
        "sum of what each does alone"
    )
    undecayed: ClassVar[tuple[str, ...]] = ("prompts",)
    tokens: Rank = 10
    deep: bool = Field(False, description="prompts of its own for every block")
    dropout: Share = Field(0.0, description="on the prompts")

    def added(self, architecture: Architecture, quantization: Quantization | None = None) -> Shapes:
        blocks = self.chosen_blocks(architecture)
        shape = (1, self.tokens, architecture.embed_dim)
        return {f"blocks.{block}.prompts": shape for block in (blocks if self.deep else blocks[:1])}
