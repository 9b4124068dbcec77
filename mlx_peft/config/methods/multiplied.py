"""Methods that multiply the frozen weight of a layer by a matrix that they train."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from mlx_peft.config.methods.base import Targeted
from mlx_peft.config.quantization import Quantization
from mlx_peft.core.bounds import Rank
from mlx_peft.core.errors import UserError
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.shapes import Shapes
from mlx_peft.vit.sites import PARTS, Site, Targets

NO_SUM = "two turns are one after the other, and no weighted sum of two is a turn"
TURNS = (
    "it turns the inputs of a layer by a matrix, and what each row of a batch may have of its own scales them one by "
    "one, or adds to what leaves the layer"
)


class Turned(Targeted):
    """A method that turns the inputs of a layer, of which q, k and v have the same."""

    in_peft: ClassVar[bool] = True
    unmixed: ClassVar[str | None] = TURNS
    uncombined: ClassVar[str | None] = NO_SUM

    @field_validator("targets")
    @classmethod
    def _whole_layers(cls, targets: Targets) -> Targets:
        if parts := [name for name in targets if name in PARTS]:
            raise ValueError(f"{parts[0]!r} has no inputs of its own to be turned: name qkv, whose q, k and v share")
        return targets


class OFT(Turned):
    """Orthogonal fine-tuning (Qiu et al. 2023, arXiv 2306.07280): y = W R^T x + b, R = diag(R_1, R_2, ...).

    Each R_i turns a block of the inputs. It is made of a skew-symmetric S_i by Cayley's formula, or by the first
    ``terms`` of its Neumann series (Qiu et al. 2025, arXiv 2506.19847), which needs no inverse and is a rotation up to
    the terms that are left out.
    """

    name: Literal["oft"] = "oft"
    block_size: int = Field(32, ge=2, le=65536, description="inputs that are turned together; must divide a layer's")
    block_count: Rank | None = Field(None, description="so many blocks a layer, of whatever size; null: by block_size")
    block_share: bool = Field(False, description="one rotation for all blocks of a layer")
    cayley: Literal["neumann", "exact"] = Field("neumann", description="exact: by solving a system for each block")
    terms: int = Field(5, ge=4, le=64, description="of Neumann's series")

    def size_of(self, site: Site) -> int:
        """How many inputs of a layer each block has. Raises UserError where the blocks do not divide them."""
        if self.block_count is not None:
            if site.inputs % self.block_count or site.inputs < 2 * self.block_count:
                raise UserError(
                    f"method.block_count: {self.block_count} blocks do not divide the {site.inputs} inputs of "
                    f"{site.path} into equal ones of two or more"
                )
            return site.inputs // self.block_count
        must_divide(self.block_size, site)
        return self.block_size

    def check(self, architecture: Architecture) -> None:
        for site in self.sites(architecture):
            self.size_of(site)

    def added(self, architecture: Architecture, quantization: Quantization | None = None) -> Shapes:
        found: Shapes = {}
        for site in self.sites(architecture):
            size = self.size_of(site)
            count = 1 if self.block_share else site.inputs // size
            found[f"{site.path}.oft_R"] = (count, size * (size - 1) // 2)
        return found


def must_divide(block_size: int, site: Site) -> None:
    """Raises UserError, with the nearest sizes that do, where blocks of a size do not divide a layer's inputs."""
    if site.inputs % block_size:
        fitting = [size for size in range(2, site.inputs + 1) if site.inputs % size == 0]
        nearest = sorted(sorted(fitting, key=lambda size: abs(size - block_size))[:2])
        raise UserError(
            f"method.block_size: {block_size} does not divide the {site.inputs} inputs of {site.path}; "
            f"{' and '.join(map(str, nearest))} do"
        )
