"""The fine-tuning methods in PyTorch, and the registry that finds one by its configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

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
from mlx_peft.config.quantization import QAT
from mlx_peft.core.errors import UserError
from mlx_peft.vit.parameters import is_head
from torch_ref.methods import quantized, rounding
from torch_ref.methods.adalora import AdaLoRAMethod
from torch_ref.methods.adapted import Adapted
from torch_ref.methods.adapter_plus import AdapterPlusMethod
from torch_ref.methods.adaptformer import AdaptFormerMethod
from torch_ref.methods.boft import BOFTMethod
from torch_ref.methods.convpass import ConvpassMethod
from torch_ref.methods.fact import FacTMethod
from torch_ref.methods.houlsby import HoulsbyMethod
from torch_ref.methods.ia3 import IA3Method
from torch_ref.methods.importance import Importance
from torch_ref.methods.linear import LinearMethod
from torch_ref.methods.loha import LoHaMethod
from torch_ref.methods.lokr import LoKrMethod
from torch_ref.methods.lora import LoRAMethod
from torch_ref.methods.lst import LSTMethod
from torch_ref.methods.method import Method
from torch_ref.methods.miss import MiSSMethod
from torch_ref.methods.oft import OFTMethod
from torch_ref.methods.prompt import VPTMethod
from torch_ref.methods.pvera import PVeRAMethod
from torch_ref.methods.qalora import QALoRAMethod
from torch_ref.methods.randlora import RandLoRAMethod
from torch_ref.methods.repadapter import RepAdapterMethod
from torch_ref.methods.road import RoAdMethod
from torch_ref.methods.selective import SelectiveMethod
from torch_ref.methods.ssf import SSFMethod
from torch_ref.methods.targets import replace
from torch_ref.methods.vera import VeRAMethod
from torch_ref.models.vit import VisionTransformer

METHODS: dict[str, Method[Any]] = {
    method.name: method
    for method in (
        LinearMethod(Linear),
        SelectiveMethod(Full),
        SelectiveMethod(BitFit),
        SelectiveMethod(LayerNorm),
        LoRAMethod(LoRA),
        QALoRAMethod(QALoRA),
        AdaLoRAMethod(AdaLoRA),
        VeRAMethod(VeRA),
        FacTMethod(FacT),
        IA3Method(IA3),
        SSFMethod(SSF),
        AdaptFormerMethod(AdaptFormer),
        AdapterPlusMethod(AdapterPlus),
        HoulsbyMethod(Houlsby),
        RepAdapterMethod(RepAdapter),
        ConvpassMethod(Convpass),
        VPTMethod(VPT),
        OFTMethod(OFT),
        BOFTMethod(BOFT),
        RoAdMethod(RoAd),
        LoHaMethod(LoHa),
        LoKrMethod(LoKr),
        MiSSMethod(MiSS),
        RandLoRAMethod(RandLoRA),
        PVeRAMethod(PVeRA),
        LSTMethod(LST),
    )
}
"""The registry of methods by their names: nothing else lists them."""


def apply(model: VisionTransformer, method: MethodConfig, seed: int, qat: QAT | None = None) -> None:
    """Freezes the model but for its heads, its routers and what the method trains, which it puts in place.

    With ``qat``, the blocks' linear layers are rounded as the codes they are to become.

    Raises UserError where a target matches no layer, the method does not fit the model, or it has one already.
    """
    if model.method is not None:
        raise UserError(f"the model has the method {model.method.name!r} already; take it out with remove_adapter")
    method.check(model.architecture)
    method.check_quantization(model.architecture, model.quantization)
    method.check_tokens(model.tokens)
    if qat is not None:
        method.check_rounding(model.architecture, qat, model.quantization)
    model.requires_grad_(False)
    METHODS[method.name].apply(model, method, seed)
    for name, p in model.named_parameters():
        if is_head(name):
            p.requires_grad_(True)
    model.routers.requires_grad_(True)
    if qat is not None:
        rounding.apply(model, qat)
    model.method, model.standing = method, model.standing.end()


def merge(model: VisionTransformer, dequantize: bool = False) -> dict[str, nn.Module]:
    """Folds what the method put into the model into plain layers, in place; ``unmerge`` takes what this returns.

    What was trained through codes is in codes after that. With ``dequantize`` nothing is: a quantised base becomes a
    plain one first, and codes that were trained towards become the plain weights that they stand for.

    Raises UserError, and changes nothing, where the mathematics does not allow it.
    """
    if model.tokens is not None:
        model.tokens.must_merge()
    written_out = [partial(quantized.dequantize, model)] if dequantize else []
    method = [partial(METHODS[model.method.name].merge, model)] if model.method is not None else []
    replaced: dict[str, nn.Module] = {}
    try:
        for step in (*written_out, *method, partial(rounding.merge, model), *written_out):
            # The last first: what was below a merged layer is in its place again only after that.
            replaced = step() | replaced
    except BaseException:
        unmerge(model, replaced)
        raise
    return replaced


def remove(model: VisionTransformer) -> None:
    """Takes any method out: what it wrapped is as it was, what it added is gone, and all but codes can be trained."""
    wrapped = rounding.unrounded(model)
    wrapped |= {path: layer.base_layer for path, layer in model.named_modules() if isinstance(layer, Adapted)}
    unmerge(model, wrapped | {"shared": nn.Module()})
    model.method, model.standing = None, model.standing.end()
    codes = {p for layer in quantized.layers(model).values() for p in layer.parameters()}
    for p in model.parameters():
        p.requires_grad_(p not in codes)


def kept(model: VisionTransformer) -> dict[str, Tensor]:
    """What the model's method keeps frozen beside what it trains, by name: an adapter is not whole without it."""
    if model.method is None or not model.method.kept:
        return {}
    return {name: p for name, p in model.named_parameters() if model.method.keeps(name)}


def penalty(model: VisionTransformer, method: MethodConfig) -> Tensor | float:
    """What the method adds to the loss in training; 0 where it adds nothing."""
    return METHODS[method.name].penalty(model, method)


def importance(model: VisionTransformer, method: MethodConfig) -> Importance | None:
    """What the method has averaged over the steps; None for most."""
    return METHODS[method.name].importance(model, method)


def scores(model: VisionTransformer, method: MethodConfig, elements: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """How much each triplet matters, by adapter, from the scores of elements that ``importance`` gives."""
    return METHODS[method.name].scores(model, method, elements)


def masks(model: VisionTransformer, method: MethodConfig, keep: Mapping[str, Sequence[bool]]) -> dict[str, np.ndarray]:
    """What of which parameters is kept, by name, from the triplets that are, by adapter."""
    return METHODS[method.name].masks(model, method, keep)


def unmerge(model: VisionTransformer, replaced: dict[str, nn.Module]) -> None:
    """Puts back what ``merge`` replaced, bit for bit."""
    for path, layer in replaced.items():
        replace(model, path, layer)
