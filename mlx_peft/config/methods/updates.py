"""Methods that add to the frozen weight a matrix that few numbers make, otherwise than as one product B A."""

from __future__ import annotations

from math import isqrt
from typing import ClassVar, Literal

from pydantic import Field

from mlx_peft.config.methods.base import Targeted, Undivided
from mlx_peft.config.methods.lowrank import fits
from mlx_peft.config.quantization import Quantization
from mlx_peft.core.bounds import Positive, Rank, Share
from mlx_peft.core.errors import UserError
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.shapes import Shapes
from mlx_peft.vit.sites import Site


class LoHa(Targeted):
    """Low-rank Hadamard products (Hyeon-Woo et al. 2022, arXiv 2108.06098): y = W x + b + s (A_1 B_1 * A_2 B_2) x.

    s = alpha / rank. The product of two matrices of a rank, element by element, has its square.
    """

    name: Literal["loha"] = "loha"
    in_peft: ClassVar[bool] = True
    rank: Rank = Field(8, description="of each of the two")
    alpha: Positive = 8.0

    @property
    def scaling(self) -> float:
        """s in the equation."""
        return self.alpha / self.rank

    def check_new(self, architecture: Architecture) -> None:
        for site in self.sites(architecture):
            fits(self.rank, site)

    def added(self, architecture: Architecture, quantization: Quantization | None = None) -> Shapes:
        return {
            f"{site.path}.hada_w{number}_{factor}": shape
            for site in self.sites(architecture)
            for number in (1, 2)
            for factor, shape in (("a", (site.adapted, self.rank)), ("b", (site.count * self.rank, site.inputs)))
        }


class LoKr(Undivided):
    """Low-rank Kronecker products (Yeh et al. 2024, arXiv 2309.14859): y = W x + b + s (W_1 kron W_2) x.

    s = alpha / rank. W_2, and with ``decompose_both`` W_1 too, is a product of two factors where the rank is below half
    of its larger width.
    """

    name: Literal["lokr"] = "lokr"
    in_peft: ClassVar[bool] = True
    undivided: ClassVar[str] = "its rows are no Kronecker product where those of the whole qkv are one"
    rank: Rank = 8
    alpha: Positive = 8.0
    decompose_both: bool = Field(False, description="W_1 as a product of two factors too")
    factor: Rank | None = Field(
        None, description="rows and columns of W_1, or the nearest fewer that divide a layer's; null: near the root"
    )

    @property
    def scaling(self) -> float:
        """s in the equation."""
        return self.alpha / self.rank

    def added(self, architecture: Architecture, quantization: Quantization | None = None) -> Shapes:
        found: Shapes = {}
        for site in self.sites(architecture):
            found |= {f"{site.path}.{name}": shape for name, shape in self.factors(site).items()}
        return found

    def factors(self, site: Site) -> dict[str, tuple[int, int]]:
        """The shapes of one layer's tensors by their last names."""
        rows, columns = divided(site.outputs, self.factor), divided(site.inputs, self.factor)
        found: dict[str, tuple[int, int]] = {}
        for name, splits, shape in (
            ("lokr_w1", self.decompose_both, (rows[0], columns[0])),
            ("lokr_w2", True, (rows[1], columns[1])),
        ):
            if splits and 2 * self.rank < max(shape):
                found |= {f"{name}_a": (shape[0], self.rank), f"{name}_b": (self.rank, shape[1])}
            else:
                found[name] = shape
        return found


def divided(width: int, factor: int | None) -> tuple[int, int]:
    """A width as a product of two, as Hugging Face PEFT divides it: the first is the factor, where that divides it.

    Otherwise the first is the largest divisor that is above neither the factor nor the width's root.
    """
    if factor is not None and width % factor == 0:
        return factor, width // factor
    most = isqrt(width) if factor is None else min(isqrt(width), factor)
    first = max(divisor for divisor in range(1, most + 1) if width % divisor == 0)
    return first, width // first


class MiSS(Targeted):
    """Matrix shard sharing (Kang and Yin 2025, arXiv 2409.15371): y = W x + b + D^T (sum of x's pieces of r inputs).

    All shards of the update, of r columns each, are the same trained matrix D^T. ``mini``: and of D's columns, each of
    so many that follow one another are the same.
    """

    name: Literal["miss"] = "miss"
    in_peft: ClassVar[bool] = True
    rank: Rank = Field(64, description="r, of the inputs that a piece has")
    mini: Rank | None = Field(
        None, description="columns of D that are repeated; must divide a layer's outputs; null: all"
    )
    dropout: Share = Field(0.0, description="on the input")

    @property
    def dropped(self) -> float:
        return self.dropout

    def check(self, architecture: Architecture) -> None:
        for site in self.sites(architecture):
            if self.rank > site.inputs:
                raise UserError(f"method: rank {self.rank} is above the {site.inputs} inputs of {site.path}")
            if self.mini is not None and site.parts:
                raise UserError(f"method.mini: columns are repeated over whole layers, not {site.parts[0]}: name qkv")
            if self.mini is not None and site.outputs % self.mini:
                raise UserError(f"method.mini: {self.mini} does not divide the {site.outputs} outputs of {site.path}")

    def added(self, architecture: Architecture, quantization: Quantization | None = None) -> Shapes:
        return {f"{site.path}.miss_block": (self.rank, self.mini or site.adapted) for site in self.sites(architecture)}
