"""Parameter-efficient fine-tuning of Vision Transformers: the PyTorch backend.

The library's names are found on first use, so ``import torch_ref`` needs no framework.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_peft.config.methods import (
        IA3,
        SSF,
        VPT,
        AdaLoRA,
        AdaptFormer,
        BitFit,
        FacT,
        Full,
        LayerNorm,
        Linear,
        LoRA,
        QALoRA,
        VeRA,
    )
    from mlx_peft.config.quantization import QAT, Quantization
    from torch_ref.library import (
        add_adapter,
        create_model,
        load_adapter,
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
    "IA3",
    "QAT",
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
    "QALoRA",
    "Quantization",
    "VeRA",
    "add_adapter",
    "create_model",
    "load_adapter",
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

_HOMES = {"QAT": "mlx_peft.config.quantization", "Quantization": "mlx_peft.config.quantization"}
"""Of what is configured; the other names in capitals are methods."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    usual = "mlx_peft.config.methods" if name[0].isupper() else "torch_ref.library"
    return getattr(import_module(_HOMES.get(name, usual)), name)


def __dir__() -> list[str]:
    return __all__
