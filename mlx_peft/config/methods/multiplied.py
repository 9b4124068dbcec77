"""Methods that multiply the frozen weight of a layer by a matrix that they train."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from mlx_peft.config.methods.base import Targeted, Undivided
from mlx_peft.config.quantization import Quantization
from mlx_peft.core.bounds import Rank
from mlx_peft.core.errors import UserError
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.shapes import Shapes
from mlx_peft.vit.sites import Site

NO_SUM = "two turns are one after the other, and no weighted sum of two is a turn"
TURNS = (
    "it turns the inputs of a layer by a matrix, and what each row of a batch may have of its own scales them one by "
    "one, or adds to what leaves the layer"
)


class Turned(Undivided):
    """A method that turns blocks of a layer's inputs."""

    in_peft: ClassVar[bool] = True
    unmixed: ClassVar[str | None] = TURNS
    uncombined: ClassVar[str | None] = NO_SUM
    undivided: ClassVar[str] = "has no inputs of its own to be turned"
    block_size: int = Field(32, ge=2, le=65536, description="inputs that are turned together; must divide a layer's")
    block_count: Rank | None = Field(None, description="so many blocks a layer, of whatever size; null: by block_size")

    def size_of(self, site: Site) -> int:
        """How many inputs of a layer each block has. Raises UserError where the blocks do not divide them."""
        if self.block_count is None:
            must_divide(self.block_size, site)
            return self.block_size
        if site.inputs % self.block_count or site.inputs < 2 * self.block_count:
            raise UserError(
                f"method.block_count: {self.block_count} blocks do not divide the {site.inputs} inputs of "
                f"{site.path} into equal ones of two or more"
            )
        return site.inputs // self.block_count

    def check(self, architecture: Architecture) -> None:
        for site in self.sites(architecture):
            self.size_of(site)


class OFT(Turned):
    """Orthogonal fine-tuning (Qiu et al. 2023, arXiv 2306.07280): y = W R^T x + b, R = diag(R_1, R_2, ...).

    Each R_i turns a block of the inputs. It is made of a skew-symmetric S_i by Cayley's formula, or by the first
    ``terms`` of its Neumann series (Qiu et al. 2025, arXiv 2506.19847), which needs no inverse and is a rotation up to
    the terms that are left out.
    """

    name: Literal["oft"] = "oft"
    block_share: bool = Field(False, description="one rotation for all blocks of a layer")
    cayley: Literal["neumann", "exact"] = Field("neumann", description="exact: by solving a system for each block")
    terms: int = Field(5, ge=4, le=64, description="of Neumann's series")

    def added(self, architecture: Architecture, quantization: Quantization | None = None) -> Shapes:
        found: Shapes = {}
        for site in self.sites(architecture):
            size = self.size_of(site)
            count = 1 if self.block_share else site.inputs // size
            found[f"{site.path}.oft_R"] = (count, size * (size - 1) // 2)
        return found


class BOFT(Turned):
    """Orthogonal fine-tuning by butterflies (Liu et al. 2024, arXiv 2311.06243): y = s * (W R^T x) + b.

    R = B_m ... B_2 B_1, whose factors turn ever other pairs of half blocks, so that few numbers make a dense rotation;
    with one factor it is OFT's, by Cayley's formula. s scales the outputs.
    """

    name: Literal["boft"] = "boft"
    undecayed: ClassVar[tuple[str, ...]] = ("boft_s",)
    block_size: int = Field(4, ge=2, le=65536, description="inputs that are turned together; must divide a layer's")
    factors: int = Field(1, ge=1, le=16, description="m, of butterflies")

    def check(self, architecture: Architecture) -> None:
        for site in self.sites(architecture):
            size = self.size_of(site)
            if self.factors > 1 and (size % 2 or (site.inputs // size) % 2 ** (self.factors - 1)):
                raise UserError(
                    f"method.factors: {self.factors} butterflies need blocks of an even size, and a number of them "
                    f"that {2 ** (self.factors - 1)} divides; {site.path} has {site.inputs // size} of {size} inputs"
                )

    def added(self, architecture: Architecture, quantization: Quantization | None = None) -> Shapes:
        found: Shapes = {}
        for site in self.sites(architecture):
            size = self.size_of(site)
            found[f"{site.path}.boft_R"] = (self.factors, site.inputs // size, size, size)
            found[f"{site.path}.boft_s"] = (site.outputs, 1)
        return found


class RoAd(Targeted):
    """Rotary adapters (Liao and Monz 2024, arXiv 2409.00119): y = R (W x + b): pairs of outputs turn.

    y_1 = a cos(t) z_1 - a sin(t) z_2, y_2 = a sin(t) z_1 + a cos(t) z_2, so that they are stretched too. ``variant`` is
    how many angles t and factors a there are for each pair: 1, 2 (of each output), or 4 (of each of the four products).
    """

    name: Literal["road"] = "road"
    in_peft: ClassVar[bool] = True
    unmixed: ClassVar[str | None] = (
        "it turns pairs of outputs, and what each row of a batch may have of its own scales them one by one, or adds "
        "to them"
    )
    uncombined: ClassVar[str | None] = NO_SUM
    variant: Literal[1, 2, 4] = 1
    group_size: int = Field(
        64, ge=2, le=65536, multiple_of=2, description="outputs; the first half of each group is paired with the second"
    )

    def check(self, architecture: Architecture) -> None:
        for site in self.sites(architecture):
            rows = site.adapted // site.count
            if rows % self.group_size:
                raise UserError(
                    f"method.group_size: {self.group_size} does not divide the {rows} outputs of "
                    f"{'a part of ' if site.parts else ''}{site.path}"
                )

    def added(self, architecture: Architecture, quantization: Quantization | None = None) -> Shapes:
        return {
            f"{site.path}.road_{name}": (site.adapted * self.variant // 2,)
            for site in self.sites(architecture)
            for name in ("theta", "alpha")
        }


def must_divide(block_size: int, site: Site) -> None:
    """Raises UserError, with the nearest sizes that do, where blocks of a size do not divide a layer's inputs."""
    if site.inputs % block_size:
        fitting = [size for size in range(2, site.inputs + 1) if site.inputs % size == 0]
        nearest = sorted(sorted(fitting, key=lambda size: abs(size - block_size))[:2])
        raise UserError(
            f"method.block_size: {block_size} does not divide the {site.inputs} inputs of {site.path}; "
            f"{' and '.join(map(str, nearest))} do"
        )
