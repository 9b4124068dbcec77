"""Methods whose matrices are random, frozen and shared by all layers: what is trained is how each layer scales them."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from mlx_peft.config.methods.base import Targeted, Undivided
from mlx_peft.config.methods.lowrank import fits
from mlx_peft.config.quantization import Quantization
from mlx_peft.core.bounds import Positive, Rank, Share
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.shapes import Shapes
from mlx_peft.vit.sites import Site, Targets, widths


class Vectors(Targeted):
    """A method that scales what two shared projections give by two vectors a layer."""

    in_peft: ClassVar[bool] = True
    halves: ClassVar[int]
    """How many numbers A gives for each input of B."""
    targets: Targets = ("q", "v")
    rank: Rank = 256
    d_initial: Positive = Field(0.1, description="lambda_d at the start")
    dropout: Share = Field(0.0, description="on the input of A")
    projection_key: int = Field(0, ge=0, lt=2**64, description="that A and B are drawn from, as PEFT draws them")

    @property
    def dropped(self) -> float:
        return self.dropout

    def added(self, architecture: Architecture, quantization: Quantization | None = None) -> Shapes:
        sites, names = self.sites(architecture), f"{self.name}_lambda"
        inputs, outputs = widths(sites)
        found: Shapes = {
            f"shared.{self.name}_A": (self.halves * self.rank, inputs),
            f"shared.{self.name}_B": (outputs, self.rank),
        }
        for site in sites:
            found[f"{site.path}.{names}_d"] = (site.count * self.halves * self.rank,)
            found[f"{site.path}.{names}_b"] = (site.adapted,)
        return found


class VeRA(Vectors):
    """Vector-based random adaptation (Kopiczko et al. 2024, arXiv 2310.11454).

    y = W x + b + lambda_b * (B (lambda_d * (A drop(x)))): A and B are random, frozen and shared by all layers.
    """

    name: Literal["vera"] = "vera"
    rounds: ClassVar[bool] = True
    kept: ClassVar[tuple[str, ...]] = ("vera_A", "vera_B")
    halves: ClassVar[int] = 1


class PVeRA(Vectors):
    """Probabilistic VeRA (Fillioux et al. 2025, arXiv 2512.07703): B reads draws, whose mean and variance are trained.

    y = W x + b + lambda_b * (B z), [m, v] = lambda_d * (A drop(x)), z = m + e * exp(v / 2). In training
    e ~ N(0, 1), for each token anew; otherwise e = 0, and so it merges.
    """

    name: Literal["pvera"] = "pvera"
    kept: ClassVar[tuple[str, ...]] = ("pvera_A", "pvera_B")
    halves: ClassVar[int] = 2


class RandLoRA(Undivided):
    """A full-rank sum of random products (Albert et al. 2025, arXiv 2502.00987).

    y = W x + b + s sum_i B_i diag(l_i) A diag(g_i) x, s = alpha / rank: A and the B_i are random, frozen and shared by
    all layers, and there are as many as it takes for the sum to have full rank. A layer with fewer outputs than inputs
    has the transpose of such a sum.
    """

    name: Literal["randlora"] = "randlora"
    in_peft: ClassVar[bool] = True
    undivided: ClassVar[str] = "has no sum of its own, for its rows meet random matrices that are the whole qkv's"
    kept: ClassVar[tuple[str, ...]] = ("randlora_A", "randlora_B")
    undecayed: ClassVar[tuple[str, ...]] = ("randlora_lambda", "randlora_gamma")
    rank: Rank = Field(32, description="of each product; the larger, the fewer of them, and the fewer parameters")
    alpha: Positive = 640.0
    dropout: Share = Field(0.0, description="on the input")
    bases: Literal["uniform", "sparse", "very_sparse"] = Field(
        "uniform",
        description="the random numbers; sparse: -1, 0 and 1, a third of them not 0; very_sparse: ever fewer in wider "
        "models",
    )
    projection_key: int = Field(0, ge=0, lt=2**64, description="that A and B are drawn from, as PEFT draws them")

    @property
    def dropped(self) -> float:
        return self.dropout

    @property
    def scaling(self) -> float:
        """s in the equation."""
        return self.alpha / self.rank

    def check_new(self, architecture: Architecture) -> None:
        for site in self.sites(architecture):
            fits(self.rank, site)

    def count(self, width: int) -> int:
        """How many products a sum of so many rows or columns, whichever are fewer, has."""
        return -(-width // self.rank)

    def widths(self, architecture: Architecture) -> tuple[int, int]:
        """How wide A is, and how high each B_i: both are at least as large as any adapted layer asks for."""
        inputs, outputs = widths(self.sites(architecture))
        return min(inputs, outputs), max(inputs, outputs)

    def factors(self, site: Site) -> dict[str, tuple[int, int]]:
        """The shapes of what one layer trains, by their last names: the l_i, and the g_i."""
        width = min(site.inputs, site.outputs)
        return {
            "randlora_lambda": (self.rank, self.count(width)),
            "randlora_gamma": (self.count(width), width),
        }

    def added(self, architecture: Architecture, quantization: Quantization | None = None) -> Shapes:
        width, height = self.widths(architecture)
        found: Shapes = {
            "shared.randlora_A": (self.rank, 1, width),
            "shared.randlora_B": (height, self.count(width), self.rank),
        }
        for site in self.sites(architecture):
            found |= {f"{site.path}.{name}": shape for name, shape in self.factors(site).items()}
        return found
