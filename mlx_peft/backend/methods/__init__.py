"""The fine-tuning methods in MLX, and the registry that finds one by its configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_peft.backend.methods import quantized, rounding
from mlx_peft.backend.methods.adalora import AdaLoRAMethod
from mlx_peft.backend.methods.adapted import Adapted
from mlx_peft.backend.methods.adapter_plus import AdapterPlusMethod
from mlx_peft.backend.methods.adaptformer import AdaptFormerMethod
from mlx_peft.backend.methods.boft import BOFTMethod
from mlx_peft.backend.methods.convpass import ConvpassMethod
from mlx_peft.backend.methods.fact import FacTMethod
from mlx_peft.backend.methods.houlsby import HoulsbyMethod
from mlx_peft.backend.methods.ia3 import IA3Method
from mlx_peft.backend.methods.importance import Importance
from mlx_peft.backend.methods.linear import LinearMethod
from mlx_peft.backend.methods.loha import LoHaMethod
from mlx_peft.backend.methods.lokr import LoKrMethod
from mlx_peft.backend.methods.lora import LoRAMethod
from mlx_peft.backend.methods.lst import LSTMethod
from mlx_peft.backend.methods.method import Method
from mlx_peft.backend.methods.miss import MiSSMethod
from mlx_peft.backend.methods.oft import OFTMethod
from mlx_peft.backend.methods.prompt import VPTMethod
from mlx_peft.backend.methods.pvera import PVeRAMethod
from mlx_peft.backend.methods.qalora import QALoRAMethod
from mlx_peft.backend.methods.randlora import RandLoRAMethod
from mlx_peft.backend.methods.repadapter import RepAdapterMethod
from mlx_peft.backend.methods.road import RoAdMethod
from mlx_peft.backend.methods.selective import SelectiveMethod
from mlx_peft.backend.methods.ssf import SSFMethod
from mlx_peft.backend.methods.targets import replace
from mlx_peft.backend.methods.vera import VeRAMethod
from mlx_peft.backend.models.vit import VisionTransformer
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
from mlx_peft.vit.parameters import HEADS

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
    model.freeze()
    METHODS[method.name].apply(model, method, seed)
    for name in HEADS:
        if name in model:
            model[name].unfreeze()
    model.routers.unfreeze()
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
    model.unfreeze()
    for layer in quantized.layers(model).values():
        layer.freeze()


def kept(model: VisionTransformer) -> dict[str, mx.array]:
    """What the model's method keeps frozen beside what it trains, by name: an adapter is not whole without it."""
    if model.method is None or not model.method.kept:
        return {}
    return {name: p for name, p in tree_flatten(model.parameters()) if model.method.keeps(name)}


def penalty(model: VisionTransformer, method: MethodConfig) -> mx.array | float:
    """What the method adds to the loss in training; 0 where it adds nothing."""
    return METHODS[method.name].penalty(model, method)


def importance(model: VisionTransformer, method: MethodConfig) -> Importance | None:
    """What the method has averaged over the steps; None for most."""
    return METHODS[method.name].importance(model, method)


def scores(model: VisionTransformer, method: MethodConfig, elements: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """How much each triplet matters, by adapter, from the scores of elements that ``importance`` gives."""
    return METHODS[method.name].scores(model, method, elements)


def masks(model: VisionTransformer, method: MethodConfig, keep: Mapping[str, Sequence[bool]]) -> dict[str, np.ndarray]:
    """What of which parameters is kept, by name, from the triplets that are, by adapter."""
    return METHODS[method.name].masks(model, method, keep)


def unmerge(model: VisionTransformer, replaced: dict[str, nn.Module]) -> None:
    """Puts back what ``merge`` replaced, bit for bit."""
    for path, layer in replaced.items():
        replace(model, path, layer)
