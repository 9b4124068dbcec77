"""What an adapter does to each layer, in terms that the rows of one batch can each have of their own.

A layer y = f(x) becomes

    y = gain * (f(into * x) + n(x) * weight + (x A + g(x) G) B) + shift

n(x) is a norm's input normalised, before its own weight and bias; g(x) the sums of consecutive inputs, a group of a
quantised weight each; A, G and B may be of one third of a fused qkv's outputs.
A block gets prompts in front of it, beside its MLP relu(norm2(x) down + down_bias) up + up_bias, and behind it
x + gelu(x after_down + after_down_bias) after_up + after_up_bias; what its attention and its MLP end in, ``ls1`` and
``ls2``, gets y + gelu(y down + down_bias) up + up_bias. Each is NumPy and float32, so that both backends compute the
same from the same: what a method's own layer does, without dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mlx_peft.adaptation.terms import blocks, low_rank, products, vectors
from mlx_peft.adaptation.terms.term import BRANCHES, THIRDS, Array, Entering, Layers, Plain, Terms, places
from mlx_peft.config.methods import (
    IA3,
    SSF,
    VPT,
    AdaLoRA,
    AdapterPlus,
    AdaptFormer,
    BitFit,
    FacT,
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
    VeRA,
)
from mlx_peft.core.border import Tensors
from mlx_peft.vit.architecture import Architecture

__all__ = ["BRANCHES", "TERMS", "THIRDS", "Array", "Entering", "Layers", "Plain", "Terms", "places", "terms"]


def terms(method: MethodConfig, architecture: Architecture, tensors: Tensors, base: Plain) -> Terms:
    """The terms of an adapter, whose tensors are those that ``adapter_shapes`` lists.

    Raises UserError, with the method's name, where rows cannot each have one of their own.
    """
    method.must_mix()
    return TERMS[type(method)](method, architecture, tensors, base)


TERMS: Mapping[type[MethodConfig], Callable[[Any, Architecture, Tensors, Plain], Terms]] = {
    Linear: vectors.linear,
    BitFit: vectors.selective,
    LayerNorm: vectors.selective,
    LoRA: low_rank.lora,
    QALoRA: low_rank.qalora,
    AdaLoRA: low_rank.adalora,
    VeRA: low_rank.vera,
    FacT: low_rank.fact,
    IA3: vectors.ia3,
    SSF: vectors.ssf,
    AdaptFormer: blocks.adaptformer,
    AdapterPlus: blocks.adapter_plus,
    Houlsby: blocks.houlsby,
    RepAdapter: low_rank.repadapter,
    VPT: blocks.vpt,
    LoHa: products.loha,
    LoKr: products.lokr,
    MiSS: products.miss,
    RandLoRA: products.randlora,
    PVeRA: low_rank.pvera,
}
"""How each method that mixes says what it does."""
