"""Methods that add nothing: they choose which of the model's own parameters are trained."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from mlx_peft.config.methods.base import Blockwise, MethodConfig
from mlx_peft.config.quantization import Quantization
from mlx_peft.core.errors import UserError
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.parameters import BIASES, is_head, last
from mlx_peft.vit.shapes import shapes

BLOCK = re.compile(r"blocks\.(\d+)\.")
NORM = re.compile(r"(.*\.)?(norm[12]?|[qk]_norm|norm_pre|fc_norm)\.(weight|bias)")


class Selective(Blockwise):
    """Trains the parameters whose names it selects; restricted to some blocks, none outside of them."""

    def selects(self, name: str) -> bool:
        """Whether the parameter of this name is the method's kind."""
        raise NotImplementedError

    def selected(self, architecture: Architecture) -> tuple[str, ...]:
        blocks = set(self.chosen_blocks(architecture))

        def inside(name: str) -> bool:
            match = BLOCK.match(name)
            return self.blocks is None if match is None else int(match[1]) in blocks

        names = (name for name in shapes(architecture, num_classes=1) if not is_head(name))
        return tuple(name for name in names if inside(name) and self.selects(name))

    def check_quantization(self, architecture: Architecture, quantization: Quantization | None) -> None:
        if quantization is None:
            return
        codes = {f"{site.path}.weight" for site in quantization.sites(architecture)}
        if wanted := [name for name in self.selected(architecture) if name in codes]:
            raise UserError(
                f"method {self.name} trains {wanted[0]}, which quantize makes a matrix of {quantization.bits}-bit "
                "codes: codes have no gradient. Choose a method that trains beside them, such as lora, or leave "
                "quantize out and quantise what was trained"
            )


class Linear(MethodConfig):
    """Linear probe: the head alone is trained."""

    name: Literal["linear"] = "linear"


class Full(Selective):
    """Full fine-tuning: every parameter is trained."""

    name: Literal["full"] = "full"
    unmixed: ClassVar[str | None] = "it trains the weights themselves, which all rows of a batch share"
    rounds: ClassVar[bool] = True

    def selects(self, name: str) -> bool:
        return True


class BitFit(Selective):
    """BitFit (Ben Zaken et al. 2022, arXiv 2106.10199): the biases are trained."""

    name: Literal["bitfit"] = "bitfit"

    def selects(self, name: str) -> bool:
        return last(name) in BIASES


class LayerNorm(Selective):
    """LayerNorm tuning (Zhao et al. 2024, arXiv 2312.11420): weights and biases of the norms are trained."""

    name: Literal["layernorm"] = "layernorm"
    in_peft: ClassVar[bool] = True

    def selects(self, name: str) -> bool:
        return NORM.fullmatch(name) is not None
