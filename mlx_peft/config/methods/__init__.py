"""The fine-tuning methods: one class a method, and the union that a configuration's ``method.name`` selects from."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mlx_peft.config.methods.added import IA3, SSF, VPT, AdaptFormer
from mlx_peft.config.methods.base import MethodConfig
from mlx_peft.config.methods.lowrank import AdaLoRA, FacT, LoRA, QALoRA, VeRA
from mlx_peft.config.methods.selective import BitFit, Full, LayerNorm, Linear

__all__ = [
    "IA3",
    "SSF",
    "VPT",
    "AdaLoRA",
    "AdaptFormer",
    "BitFit",
    "FacT",
    "Full",
    "LayerNorm",
    "Linear",
    "LoRA",
    "Method",
    "MethodConfig",
    "QALoRA",
    "VeRA",
]

Method = Annotated[
    Linear | Full | BitFit | LayerNorm | LoRA | QALoRA | AdaLoRA | VeRA | FacT | IA3 | SSF | AdaptFormer | VPT,
    Field(discriminator="name"),
]
