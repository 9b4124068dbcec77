"""What PyTorch computes on, and in which numbers."""

from __future__ import annotations

import torch

from mlx_peft.config.schema import Precision
from mlx_peft.core.border import Device

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def set_up() -> None:
    """What the device wants to be told before a model is built."""
    torch.backends.cudnn.allow_tf32 = False  # the patch convolution in float32, like everything else


def device() -> torch.device:
    """CUDA's first device where there is one, the CPU otherwise."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def version() -> str:
    """``torch 2.14.1 (cpu)``"""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return f"torch {torch.__version__} ({name})"


def computing() -> Device:
    """What PyTorch computes on. Attention is a fused kernel's, on the CPU too."""
    memory = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
    return Device(memory, forms_attention=False)


def usual_precision() -> Precision:
    """Of inference where nothing else is said: bfloat16 on a device, float32 on a CPU."""
    return "float32" if not torch.cuda.is_available() else "bfloat16"


def synchronize() -> None:
    """Waits until everything that was asked for is computed."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory() -> int | None:
    """Bytes that arrays held at once, at most, since a model or trainer was built last; None where nobody counts."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
