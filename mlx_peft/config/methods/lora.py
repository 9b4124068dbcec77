"""LoRA, and what is an option of it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from mlx_peft.config.methods.base import Targeted
from mlx_peft.config.methods.inits import INITS, KEPT, InitName
from mlx_peft.config.methods.lowrank import fits, low_rank
from mlx_peft.config.quantization import Quantization
from mlx_peft.core import patterns
from mlx_peft.core.bounds import LARGEST, Positive, Rank, Share
from mlx_peft.core.errors import UserError
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.shapes import Shapes


def of_pattern(pattern: dict[str, Any], path: str) -> Any:
    """PEFT's rule: the value of the first key, a regular expression for the end of a layer's name, that fits; or None.

    ``qkv`` and ``blocks\\.(8|9)\\.attn\\.qkv`` fit ``blocks.9.attn.qkv``; ``kv`` does not.
    """
    fitting = patterns.first_at_end(pattern, path)
    return None if fitting is None else pattern[fitting]


class LoRA(Targeted):
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685): y = W x + b + s B A drop(x), s = alpha / rank.

    ``rslora``: s = alpha / sqrt(rank) (Kalajdzievski 2023, arXiv 2312.03732). ``dora``: the direction that results is
    given a trained magnitude (Liu et al. 2024, arXiv 2402.09353). ``lora_plus``: B learns so many times faster (LoRA+,
    Hayou et al. 2024, arXiv 2402.12354, recommends 16).

    ``init``: what A and B start from. ``kaiming``: A is drawn, B = 0. ``pissa``: B A are the leading singular triplets
    of W, which is left with the rest (Meng et al. 2024, arXiv 2404.02948). ``olora``: B and A are the first columns and
    rows of W = Q R, and W is left without s B A (Buyukakyuz 2024, arXiv 2406.01775). ``orthogonal``: both are drawn, so
    that B A = 0 (Datta 2024).
    """

    name: Literal["lora"] = "lora"
    in_peft: ClassVar[bool] = True
    rounds: ClassVar[bool] = True
    kept: ClassVar[tuple[str, ...]] = (*KEPT, "lora_magnitude_rest")
    implied: ClassVar[tuple[str, ...]] = ("lora_magnitude_rest",)
    rank: Rank = 8
    alpha: Positive = 16.0
    dropout: Share = Field(0.0, description="on the input of A")
    rslora: bool = Field(False, description="s = alpha / sqrt(rank)")
    dora: bool = Field(False, description="a trained magnitude for each row of the weight")
    init: InitName = Field(
        "kaiming", description="what A and B start from; pissa: the weight's singular vectors, olora: its Q and R"
    )
    lora_plus: Positive = Field(1.0, description="learning rate of B over that of A")
    rank_pattern: dict[str, Annotated[int, Field(le=65536)]] = Field(
        default_factory=dict, description="other ranks by a regular expression for the end of a layer's name"
    )
    alpha_pattern: dict[str, Annotated[float, Field(le=LARGEST)]] = Field(
        default_factory=dict, description="likewise other alphas"
    )

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _regular_and_positive(cls, pattern: dict[str, Any]) -> dict[str, Any]:
        patterns.check(pattern)
        for key, value in pattern.items():
            if value <= 0:
                raise ValueError(f"{key!r} should be given a number above 0, not {value}")
        return pattern

    def must_combine(self) -> None:
        """As of any method. DoRA's row norms are of weight and update together: two updates do not add up."""
        super().must_combine()
        if self.dora:
            raise UserError(
                "adapters of the method lora with dora cannot be combined: each row of weight and update together is "
                "brought to a trained norm, so that the updates do not add up"
            )

    @property
    def dropped(self) -> float:
        return self.dropout

    @property
    def scaling(self) -> float:
        """s in the equation, where no pattern says otherwise."""
        return self._scaling(self.rank, self.alpha)

    def rank_of(self, path: str) -> int:
        """r of the layer at a path."""
        return int(of_pattern(self.rank_pattern, path) or self.rank)

    def scaling_of(self, path: str) -> float:
        """s of the layer at a path: its own alpha and rank."""
        return self._scaling(self.rank_of(path), float(of_pattern(self.alpha_pattern, path) or self.alpha))

    def _scaling(self, rank: int, alpha: float) -> float:
        return alpha / (rank**0.5 if self.rslora else rank)

    def lr_ratio(self, name: str) -> float:
        return self.lora_plus if name.endswith(".lora_B") else 1.0

    def check(self, architecture: Architecture) -> None:
        found = self.sites(architecture)
        for field in ("rank_pattern", "alpha_pattern"):
            for key in getattr(self, field):
                if not any(of_pattern({key: 1}, site.path) for site in found):
                    raise UserError(f"method.{field}: {key!r} matches no adapted layer, such as {found[0].path}")
        for site in found:
            INITS[self.init].check(self.rank_of(site.path), site)

    def check_new(self, architecture: Architecture) -> None:
        for site in self.sites(architecture):
            fits(self.rank_of(site.path), site)

    @property
    def start_kept(self) -> tuple[str, str] | None:
        """The last names of the first A and B, from which the update counts; None where it counts from W."""
        return (f"{self.init}_A", f"{self.init}_B") if INITS[self.init].counts else None

    def added(self, architecture: Architecture, quantization: Quantization | None = None) -> Shapes:
        found: Shapes = {}
        for site in self.sites(architecture):
            factors = low_rank(site, self.rank_of(site.path))
            found |= {f"{site.path}.lora_{factor}": shape for factor, shape in factors.items()}
            if self.start_kept is not None:
                found |= {f"{site.path}.{name}": factors[name[-1]] for name in self.start_kept}
            if self.dora:
                found[f"{site.path}.lora_magnitude_vector"] = (site.adapted,)
            if self.dora and site.adapted < site.outputs:
                found[f"{site.path}.lora_magnitude_rest"] = (site.outputs - site.adapted,)
        return found
