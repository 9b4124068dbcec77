"""What each method makes of a network in shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mlx_peft.adaptation.estimate.forms import blocks, low_rank, multiplied
from mlx_peft.adaptation.estimate.forms.form import Form
from mlx_peft.config.methods import (
    BOFT,
    IA3,
    LST,
    OFT,
    SSF,
    VPT,
    AdaLoRA,
    AdapterPlus,
    AdaptFormer,
    BitFit,
    Convpass,
    FacT,
    Full,
    Houlsby,
    LayerNorm,
    Linear,
    LoHa,
    LoKr,
    LoRA,
    MethodConfig,
    MiSS,
    PVeRA,
    QALoRA,
    RandLoRA,
    RepAdapter,
    RoAd,
    VeRA,
)
from mlx_peft.vit.architecture import Architecture

__all__ = ["FORMS", "Form", "form"]


def form(method: MethodConfig, architecture: Architecture) -> Form[Any]:
    """The layers of a method. Raises UserError where it does not fit such a model."""
    return FORMS[type(method)](method, architecture)


FORMS: Mapping[type[MethodConfig], Callable[[Any, Architecture], Form[Any]]] = {
    Linear: Form,
    Full: Form,
    BitFit: Form,
    LayerNorm: Form,
    LoRA: low_rank.LoRAForm,
    QALoRA: low_rank.QALoRAForm,
    AdaLoRA: low_rank.AdaLoRAForm,
    VeRA: low_rank.VeRAForm,
    FacT: low_rank.FacTForm,
    IA3: multiplied.IA3Form,
    SSF: multiplied.SSFForm,
    AdaptFormer: blocks.AdaptFormerForm,
    AdapterPlus: blocks.AdapterPlusForm,
    Houlsby: blocks.HoulsbyForm,
    RepAdapter: blocks.RepAdapterForm,
    Convpass: blocks.ConvpassForm,
    VPT: blocks.VPTForm,
    OFT: multiplied.OFTForm,
    BOFT: multiplied.BOFTForm,
    RoAd: multiplied.RoAdForm,
    LoHa: low_rank.LoHaForm,
    LoKr: multiplied.LoKrForm,
    MiSS: low_rank.MiSSForm,
    RandLoRA: low_rank.RandLoRAForm,
    PVeRA: multiplied.PVeRAForm,
    LST: blocks.LSTForm,
}
"""The registry, by the class of a method's configuration."""
