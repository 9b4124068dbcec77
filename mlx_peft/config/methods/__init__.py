"""The fine-tuning methods: one class a method, and the union that a configuration's ``method.name`` selects from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from mlx_peft.config.methods.added import IA3, SSF, VPT
from mlx_peft.config.methods.base import MethodConfig
from mlx_peft.config.methods.bottleneck import AdapterPlus, AdaptFormer, Convpass, Houlsby, RepAdapter
from mlx_peft.config.methods.lora import LoRA
from mlx_peft.config.methods.lowrank import AdaLoRA, FacT, QALoRA
from mlx_peft.config.methods.multiplied import BOFT, OFT, RoAd
from mlx_peft.config.methods.projected import PVeRA, RandLoRA, VeRA
from mlx_peft.config.methods.selective import BitFit, Full, LayerNorm, Linear
from mlx_peft.config.methods.side import LST
from mlx_peft.config.methods.updates import LoHa, LoKr, MiSS
from mlx_peft.config.words import PythonWords
from mlx_peft.core.errors import UserError, shown
from mlx_peft.core.sections import sections, variants

__all__ = [
    "BOFT",
    "IA3",
    "LST",
    "OFT",
    "SSF",
    "VPT",
    "AdaLoRA",
    "AdaptFormer",
    "AdapterPlus",
    "BitFit",
    "Convpass",
    "FacT",
    "Full",
    "Houlsby",
    "LayerNorm",
    "Linear",
    "LoHa",
    "LoKr",
    "LoRA",
    "Method",
    "MethodConfig",
    "MiSS",
    "PVeRA",
    "QALoRA",
    "RandLoRA",
    "RepAdapter",
    "RoAd",
    "VeRA",
    "called",
]

Method = Annotated[
    Linear
    | Full
    | BitFit
    | LayerNorm
    | LoRA
    | QALoRA
    | AdaLoRA
    | VeRA
    | FacT
    | IA3
    | SSF
    | AdaptFormer
    | AdapterPlus
    | Houlsby
    | RepAdapter
    | Convpass
    | VPT
    | OFT
    | BOFT
    | RoAd
    | LoHa
    | LoKr
    | MiSS
    | RandLoRA
    | PVeRA
    | LST,
    Field(discriminator="name"),
]


def called(name: str, options: Mapping[str, Any]) -> MethodConfig:
    """The method of a name, with its options. Raises UserError where there is no such method or option."""
    known = variants(sections(Method))
    if name not in known:
        meant = PythonWords(MethodConfig).of_value(name, list(known))
        raise UserError(f"unknown method {shown(name)}{meant}; known: {', '.join(known)}")
    method: MethodConfig = known[name](**options)
    return method
