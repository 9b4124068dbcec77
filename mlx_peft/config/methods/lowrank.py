"""Methods whose update of a weight has a low rank, besides LoRA."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from mlx_peft.config.methods.base import Blockwise, Targeted
from mlx_peft.config.quantization import Quantization
from mlx_peft.core.bounds import MOST_STEPS, NotNegative, Positive, Rank, Share, Steps
from mlx_peft.core.errors import UserError
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.shapes import Shapes
from mlx_peft.vit.sites import GROUPS, Site, sites


class QALoRA(Targeted):
    """QA-LoRA (Xu et al. 2024, arXiv 2309.14717): LoRA whose update is the same within a group of a quantised weight.

    y = W x + b + s B A pool(x), s = alpha / rank; pool sums, or averages, the inputs of each group of the base.
    """

    name: Literal["qalora"] = "qalora"
    over_codes: ClassVar[bool] = True
    rank: Rank = 8
    alpha: Positive = 16.0
    dropout: Share = Field(0.0, description="on the input of A")
    pool: Literal["sum", "avg"] = Field("sum", description="of a group's inputs")
    pool_size: Rank | None = Field(None, description="inputs pooled; null: the base's group, the only one it can be")

    def check(self, architecture: Architecture) -> None:
        for site in self.sites(architecture):
            if self.rank > (site.outputs // 3 if site.parts else site.outputs):
                raise UserError(f"method: rank {self.rank} is above the outputs of {site.path}")

    def added(self, architecture: Architecture, quantization: Quantization | None = None) -> Shapes:
        assert quantization is not None, "see check_quantization"
        group = quantization.group_size
        return {
            f"{site.path}.lora_{factor}": shape
            for site in self.sites(architecture)
            for factor, shape in low_rank(site, self.rank, site.inputs // group).items()
        }

    def check_quantization(self, architecture: Architecture, quantization: Quantization | None) -> None:
        if quantization is None:
            raise UserError(
                "method qalora needs a quantised base: it merges into the biases of groups, which plain weights lack; "
                "set quantize, or choose lora"
            )
        if self.pool_size not in (None, quantization.group_size):
            raise UserError(
                f"method.pool_size: {self.pool_size} is not the base's group, {quantization.group_size}: an update "
                "that differs within a group, or spans two, is no change of their biases"
            )


class AdaLoRA(Targeted):
    """LoRA whose rank is dealt out by importance (Zhang et al. 2023, arXiv 2303.10512).

    y = W x + b + s B diag(E) A drop(x), s = alpha / init_rank. From step ``t_init`` on, until ``t_final`` steps before
    the end, ever more of the least important triplets are masked, down to ``target_rank`` a layer on average.
    """

    name: Literal["adalora"] = "adalora"
    in_peft: ClassVar[bool] = True
    rounds: ClassVar[bool] = True
    init_rank: Rank = 12
    target_rank: Rank = Field(8, description="mean over the layers at the end")
    alpha: Positive = 16.0
    dropout: Share = Field(0.0, description="on the input of A")
    t_init: int = Field(0, ge=0, le=MOST_STEPS, description="steps before the first mask")
    t_final: int = Field(0, ge=0, le=MOST_STEPS, description="steps after the last mask")
    delta_t: Steps = Field(1, description="steps between two masks")
    beta1: float = Field(0.85, gt=0, lt=1, description="of the average of the importance")
    beta2: float = Field(0.85, gt=0, lt=1, description="of the average of its uncertainty")
    orth_weight: NotNegative = Field(0.5, description="of the orthogonality penalty in the loss")

    @model_validator(mode="after")
    def _budget_within_the_ranks(self) -> AdaLoRA:
        if self.target_rank > self.init_rank:
            raise ValueError(f"target_rank {self.target_rank} is a budget above the initial rank {self.init_rank}")
        return self

    @property
    def dropped(self) -> float:
        return self.dropout

    def check_new(self, architecture: Architecture) -> None:
        for site in self.sites(architecture):
            fits(self.init_rank, site)

    def added(self, architecture: Architecture, quantization: Quantization | None = None) -> Shapes:
        found: Shapes = {}
        for site in self.sites(architecture):
            factors = low_rank(site, self.init_rank) | {"E": (site.count * self.init_rank, 1)}
            found |= {f"{site.path}.lora_{factor}": shape for factor, shape in factors.items()}
        return found


class FacT(Blockwise):
    """Factor tuning, Tucker form (Jie and Deng 2023, arXiv 2212.03145): the updates of all blocks as one tensor.

    The weight j (q, k, v, proj, four quarters of fc1, four of fc2, in each block) gets s U Sigma_j V^T.
    """

    name: Literal["fact"] = "fact"
    rank: Rank = 16
    scale: Positive = Field(1.0, description="s")
    dropout: Share = Field(0.0, description="between Sigma and V; the authors' is 0.1")

    def layers(self, architecture: Architecture) -> list[tuple[Site, range]]:
        """The layers whose weights get an update, each with the numbers of its ``dim x dim`` weights in the tensor.

        A layer wider than the model counts as several weights, the last of them cut off where it does not divide.
        Raises UserError where the model has no such block.
        """
        found, start = [], 0
        for site in sites(architecture, GROUPS["all-linear"], self.chosen_blocks(architecture)):
            weights = range(start, start + -(-max(site.outputs, site.inputs) // architecture.embed_dim))
            found.append((site, weights))
            start = weights.stop
        return found

    def check(self, architecture: Architecture) -> None:
        self.chosen_blocks(architecture)
        if self.rank > architecture.embed_dim:
            raise UserError(f"method: rank {self.rank} is above the model's width, {architecture.embed_dim}")

    def added(self, architecture: Architecture, quantization: Quantization | None = None) -> Shapes:
        dim, weights = architecture.embed_dim, self.layers(architecture)[-1][1].stop
        return {
            "shared.fact_U": (dim, self.rank),
            "shared.fact_V": (dim, self.rank),
            "shared.fact_C": (self.rank, self.rank, self.rank),
            "shared.fact_P": (weights, self.rank),
        }


def low_rank(site: Site, rank: int, inputs: int | None = None) -> dict[str, tuple[int, ...]]:
    """The shapes of a layer's A and B; those of its parts are stacked. ``inputs``: of A, where they are pooled."""
    return {"A": (site.count * rank, site.inputs if inputs is None else inputs), "B": (site.adapted, rank)}


def fits(rank: int, site: Site) -> None:
    """Raises UserError where a layer's rank would be above what its weight can have."""
    part = site.outputs // 3 if site.parts else site.outputs
    if rank > min(part, site.inputs):
        raise UserError(
            f"method: rank {rank} is above the width of {site.path}: {'a part' if site.parts else 'its weight'} is "
            f"{part} x {site.inputs}, so at most {min(part, site.inputs)}"
        )
