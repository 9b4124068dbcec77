"""The fine-tuning methods: one class a method, and the union that a configuration's ``method.name`` selects from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Target = Literal["qkv", "q", "k", "v", "proj", "fc1", "fc2"]


class MethodConfig(BaseModel):
    """What every method has. A method trains its own parameters, and always the head."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Linear(MethodConfig):
    """Linear probe: the head alone is trained."""

    name: Literal["linear"] = "linear"


class Full(MethodConfig):
    """Full fine-tuning: every parameter is trained."""

    name: Literal["full"] = "full"


class LoRA(MethodConfig):
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685): y = W x + b + s B A drop(x).

    s = alpha / rank, or alpha / sqrt(rank) with ``rslora`` (Kalajdzievski 2023, arXiv 2312.03732).
    """

    name: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1, description="on the input of A")
    rslora: bool = Field(False, description="s = alpha / sqrt(rank)")
    targets: tuple[Target, ...] = Field(
        ("qkv", "proj"), min_length=1, description="linear layers inside the blocks; q, k and v are parts of qkv"
    )

    @field_validator("targets")
    @classmethod
    def _each_layer_once(cls, targets: tuple[Target, ...]) -> tuple[Target, ...]:
        if len(set(targets)) < len(targets):
            raise ValueError(f"a target is named twice in {list(targets)}")
        if "qkv" in targets and {"q", "k", "v"} & set(targets):
            raise ValueError("'qkv' already holds q, k and v: name either the whole or its parts")
        return targets

    @property
    def scaling(self) -> float:
        """s in the equation."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

    @property
    def layers(self) -> dict[str, tuple[str, ...]]:
        """Target layers by name, each with the parts of its output that are adapted (``()``: all of it)."""
        parts = tuple(part for part in ("q", "k", "v") if part in self.targets)
        layers: dict[str, tuple[str, ...]] = {"qkv": parts} if parts else {}
        return layers | {name: () for name in ("qkv", "proj", "fc1", "fc2") if name in self.targets}


Method = Annotated[Linear | Full | LoRA, Field(discriminator="name")]
