"""How each method's adapters lie on disk: the one list of them."""

from __future__ import annotations

from convert.adapters import adalora, boft, ia3, ln_tuning, loha, lokr, lora, miss, oft, randlora, road, vera
from convert.adapters.format import Format
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


def _unchanged(peft_type: str) -> Format:
    """Tensors under their own names."""
    return Format(peft_type, lambda method, tensors: ({}, tensors), lambda method, tensors: tensors)


FORMATS: dict[type[MethodConfig], Format] = {
    Linear: _unchanged("LINEAR"),
    Full: _unchanged("FULL"),
    BitFit: _unchanged("BITFIT"),
    QALoRA: _unchanged("QALORA"),
    FacT: _unchanged("FACT"),
    SSF: _unchanged("SSF"),
    AdaptFormer: _unchanged("ADAPTFORMER"),
    AdapterPlus: _unchanged("ADAPTER_PLUS"),
    Houlsby: _unchanged("HOULSBY"),
    RepAdapter: _unchanged("REPADAPTER"),
    Convpass: _unchanged("CONVPASS"),
    LST: _unchanged("LST"),
    VPT: _unchanged("VPT"),
    LoRA: Format("LORA", lora.pack, lora.unpack, lora.from_peft, lora.apart, lora.notes),
    AdaLoRA: Format("ADALORA", adalora.pack, adalora.unpack, adalora.from_peft, adalora.apart, adalora.notes),
    VeRA: vera.VERA.format,
    IA3: Format("IA3", ia3.pack, ia3.unpack, ia3.from_peft, ia3.apart, ia3.notes),
    LayerNorm: Format("LN_TUNING", ln_tuning.pack, ln_tuning.unpack, ln_tuning.from_peft),
    OFT: oft.LAYERWISE.format,
    BOFT: boft.FORMAT,
    RoAd: road.FORMAT,
    LoHa: loha.LAYERWISE.format,
    LoKr: lokr.LAYERWISE.format,
    MiSS: miss.FORMAT,
    RandLoRA: randlora.FORMAT,
    PVeRA: vera.PVERA.format,
}
