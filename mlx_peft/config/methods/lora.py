"""LoRA, and what is an option of it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from mlx_peft.config.methods.base import Given, Targeted
from mlx_peft.config.methods.inits import EVA, INITS, KEPT, InitName, LoftQ
from mlx_peft.config.methods.lowrank import fits, low_rank
from mlx_peft.config.quantization import CODES, Quantization
from mlx_peft.core import patterns
from mlx_peft.core.bounds import LARGEST, Positive, Rank, Share
from mlx_peft.core.errors import UserError
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.parameters import last
from mlx_peft.vit.shapes import Shapes
from mlx_peft.vit.sites import Site

BELOW = "base_layer"
"""The name of the layer below, in one that a method put in its place."""


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
    that B A = 0 (Datta 2024). ``loftq``: over a quantised base, codes and B A are chosen together, in turns (Li et al.
    2023, arXiv 2310.08659). ``eva``: A is the leading directions of what enters a layer on training images, and ranks
    are dealt out by how much of its variance they have (Paischer et al. 2024, arXiv 2410.07170).
    """

    name: Literal["lora"] = "lora"
    in_peft: ClassVar[bool] = True
    rounds: ClassVar[bool] = True
    kept: ClassVar[tuple[str, ...]] = (*KEPT, "lora_magnitude_rest")
    implied: ClassVar[tuple[str, ...]] = ("lora_magnitude_rest",)
    later: ClassVar[tuple[str, ...]] = ("loftq", "eva")
    rank: Rank = 8
    alpha: Positive = 16.0
    dropout: Share = Field(0.0, description="on the input of A")
    rslora: bool = Field(False, description="s = alpha / sqrt(rank)")
    dora: bool = Field(False, description="a trained magnitude for each row of the weight")
    init: InitName = Field(
        "kaiming", description="what A and B start from; pissa: the weight's singular vectors, olora: its Q and R"
    )
    loftq: LoftQ = Field(default_factory=LoftQ, description="of init: loftq")
    eva: EVA = Field(default_factory=EVA, description="of init: eva")
    lora_plus: Positive = Field(1.0, description="learning rate of B over that of A")
    rank_pattern: dict[str, Annotated[int, Field(le=65536)]] = Field(
        default_factory=dict,
        description="other ranks by a regular expression for the end of a layer's name; 0: not adapted",
    )
    alpha_pattern: dict[str, Annotated[float, Field(le=LARGEST)]] = Field(
        default_factory=dict, description="likewise other alphas"
    )

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _regular_and_positive(cls, pattern: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        patterns.check(pattern)
        least = "a number from 0 on" if info.field_name == "rank_pattern" else "a number above 0"
        for key, value in pattern.items():
            if value < 0 or (value == 0 and info.field_name != "rank_pattern"):
                raise ValueError(f"{key!r} should be given {least}, not {value}")
        return pattern

    @model_validator(mode="after")
    def _starts_from_one_thing(self) -> LoRA:
        if self.given is not None and self.start is not None:
            raise ValueError(f"init: {self.init} makes a start, and from: {self.start} is another: leave one out")
        return self

    def sites(self, architecture: Architecture) -> list[Site]:
        """As of any targets, but for layers whose rank is 0. Raises UserError where none is left."""
        every = super().sites(architecture)
        found = [site for site in every if self.rank_of(site.path)]
        if not found:
            raise UserError("method.rank_pattern: every layer has the rank 0, and at least one should be adapted")
        return found

    def must_combine(self) -> None:
        """As of any method. DoRA's row norms are of weight and update together: two updates do not add up."""
        super().must_combine()
        if self.dora:
            raise UserError(
                "adapters of the method lora with dora cannot be combined: each row of weight and update together is "
                "brought to a trained norm, so that the updates do not add up"
            )
        if self.own_codes:
            raise UserError(
                f"adapters of the method lora with init: {self.init} cannot be combined: each has codes of its own, "
                "and updates of different weights do not add up"
            )

    def must_mix(self) -> None:
        """As of any method. Below an adapter with codes of its own is another model."""
        super().must_mix()
        if self.own_codes:
            raise UserError(
                f"method lora with init: {self.init}: a batch cannot mix its adapters: each has codes of its own"
            )

    @property
    def own_codes(self) -> bool:
        return INITS[self.init].codes

    @property
    def given(self) -> Given | None:
        return INITS[self.init].given

    def keeps(self, name: str) -> bool:
        layer, kind = name.rpartition(".")[::2]
        return super().keeps(name) or (self.own_codes and kind in CODES and last(layer) == BELOW)

    def check_quantization(self, architecture: Architecture, quantization: Quantization | None) -> None:
        if self.own_codes and quantization is None:
            raise UserError(
                f"method.init: {self.init} chooses the codes of a quantised base, and here is none: set quantize, or "
                "choose another init"
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
        rank = of_pattern(self.rank_pattern, path)
        return self.rank if rank is None else int(rank)

    def scaling_of(self, path: str) -> float:
        """s of the layer at a path: its own alpha and rank."""
        return self._scaling(self.rank_of(path), float(of_pattern(self.alpha_pattern, path) or self.alpha))

    def _scaling(self, rank: int, alpha: float) -> float:
        return alpha / (rank**0.5 if self.rslora else rank)

    def lr_ratio(self, name: str) -> float:
        return self.lora_plus if name.endswith(".lora_B") else 1.0

    def check(self, architecture: Architecture) -> None:
        found = super().sites(architecture)
        for field in ("rank_pattern", "alpha_pattern"):
            for key in getattr(self, field):
                if not any(of_pattern({key: 1}, site.path) for site in found):
                    raise UserError(f"method.{field}: {key!r} matches no adapted layer, such as {found[0].path}")
        for site in self.sites(architecture):
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
            if self.own_codes:
                assert quantization is not None, "see check_quantization"
                found |= quantization.codes(site, f"{site.path}.{BELOW}")
            if self.dora:
                found[f"{site.path}.lora_magnitude_vector"] = (site.adapted,)
            if self.dora and site.adapted < site.outputs:
                found[f"{site.path}.lora_magnitude_rest"] = (site.outputs - site.adapted,)
        return found
