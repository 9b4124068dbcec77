"""Side networks: what is trained stands beside the model's blocks, through which no gradient goes."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from mlx_peft.config.methods.base import Blockwise
from mlx_peft.config.quantization import Quantization
from mlx_peft.core.bounds import Positive, Rank
from mlx_peft.core.errors import UserError
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.shapes import Shapes, block_shapes, norm_shapes


class LST(Blockwise):
    """Ladder side-tuning (Sung et al. 2022, arXiv 2206.06522): a narrow ViT beside the blocks reads what leaves them.

    Its answer is added to the last block's. What leaves a block is read as it is: no gradient goes through the model.
    """

    name: Literal["lst"] = "lst"
    unmerged: ClassVar[str | None] = (
        "its side network has blocks of its own, which no weight of the model can take up; keep the adapter beside the "
        "model"
    )
    unmixed: ClassVar[str | None] = (
        "its side network has attention of its own beside every block, which scales and sums of rows cannot say"
    )
    uncombined: ClassVar[str | None] = (
        "two side networks stand side by side: no weighted sum of their weights answers what both do"
    )
    unreduced: ClassVar[str | None] = "its side network has all tokens in every block"
    beside: ClassVar[bool] = True
    reduction: Rank = Field(8, description="how many times narrower than the model its side network is")
    temperature: Positive = Field(0.1, description="T of the gates sigmoid(alpha / T)")

    def narrow(self, architecture: Architecture) -> Architecture:
        """What the side network's blocks are made of: as many heads as the model's, all of them narrower.

        Layer scale, which would begin near zero, is left out; so are positions in attention: what is read knows them.
        """
        changes = {
            "embed_dim": architecture.embed_dim // self.reduction,
            "positions": "learnt",
            "init_values": None,
        }
        return architecture.model_copy(update=changes)

    def check(self, architecture: Architecture) -> None:
        blocks = self.chosen_blocks(architecture)
        if blocks[-1] != architecture.depth - 1:
            raise UserError(
                f"method.blocks: the last block, {architecture.depth - 1}, must be among them, behind which the side "
                "network's answer is added"
            )
        if architecture.head_dim % self.reduction:
            raise UserError(
                f"method.reduction: {self.reduction} does not divide the width of the model's heads, "
                f"{architecture.head_dim}"
            )
        narrow = self.narrow(architecture)
        if narrow.mlp_layer == "swiglu_packed" and narrow.hidden_dim % 2:
            raise UserError(
                f"method.reduction: {self.reduction} leaves the side network's MLP {narrow.hidden_dim} channels, which "
                "have no halves"
            )

    def added(self, architecture: Architecture, quantization: Quantization | None = None) -> Shapes:
        self.check(architecture)
        blocks, narrow = self.chosen_blocks(architecture), self.narrow(architecture)
        first, last, width, dim = blocks[0], blocks[-1], narrow.embed_dim, architecture.embed_dim
        shapes: Shapes = {
            f"blocks.{first}.side_first.weight": (width, dim),
            f"blocks.{first}.side_first.bias": (width,),
        }
        for block in (f"blocks.{number}" for number in blocks):
            shapes |= {f"{block}.side_down.weight": (width, dim), f"{block}.side_down.bias": (width,)}
            shapes |= {f"{block}.side_gate": (1,)} | block_shapes(narrow, f"{block}.side_block")
        shapes |= norm_shapes(narrow, f"blocks.{last}.side_norm", width)
        return shapes | {f"blocks.{last}.side_up.weight": (dim, width), f"blocks.{last}.side_up.bias": (dim,)}
