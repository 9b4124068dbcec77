"""Parameter-efficient fine-tuning of Vision Transformers: the PyTorch backend.

The library's names are found on first use, so ``import torch_ref`` needs no framework.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
        MiSS,
        PVeRA,
        QALoRA,
        RandLoRA,
        RepAdapter,
        RoAd,
        VeRA,
    )
    from mlx_peft.config.quantization import QAT, Quantization
    from mlx_peft.config.schema import Data, Experiment, Train
    from mlx_peft.config.tokens import DyT, EViT, SkipViT, ToMe
    from mlx_peft.notebook.torch import combine, evaluate, fit, load
    from torch_ref.library import (
        add_adapter,
        compiled,
        create_model,
        load_adapter,
        load_adapters,
        merge,
        optimizer,
        prepare,
        remove_adapter,
        save_adapter,
        state_dict,
        summary,
        training_step,
        unmerge,
    )

__all__ = [
    "BOFT",
    "IA3",
    "LST",
    "OFT",
    "QAT",
    "SSF",
    "VPT",
    "AdaLoRA",
    "AdaptFormer",
    "AdapterPlus",
    "BitFit",
    "Convpass",
    "Data",
    "DyT",
    "EViT",
    "Experiment",
    "FacT",
    "Full",
    "Houlsby",
    "LayerNorm",
    "Linear",
    "LoHa",
    "LoKr",
    "LoRA",
    "MiSS",
    "PVeRA",
    "QALoRA",
    "Quantization",
    "RandLoRA",
    "RepAdapter",
    "RoAd",
    "SkipViT",
    "ToMe",
    "Train",
    "VeRA",
    "add_adapter",
    "combine",
    "compiled",
    "create_model",
    "evaluate",
    "fit",
    "load",
    "load_adapter",
    "load_adapters",
    "merge",
    "optimizer",
    "prepare",
    "remove_adapter",
    "save_adapter",
    "state_dict",
    "summary",
    "training_step",
    "unmerge",
]

_HOMES = {
    **dict.fromkeys(("QAT", "Quantization"), "mlx_peft.config.quantization"),
    **dict.fromkeys(("Data", "Experiment", "Train"), "mlx_peft.config.schema"),
    **dict.fromkeys(("combine", "evaluate", "fit", "load"), "mlx_peft.notebook.torch"),
    **dict.fromkeys(("DyT", "EViT", "SkipViT", "ToMe"), "mlx_peft.config.tokens"),
}
"""The other names in capitals are methods, and the other names the library's."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from mlx_peft.core.version import VERSION

        return VERSION
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    usual = "mlx_peft.config.methods" if name[0].isupper() else "torch_ref.library"
    return getattr(import_module(_HOMES.get(name, usual)), name)


def __dir__() -> list[str]:
    return __all__
