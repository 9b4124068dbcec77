"""What MLX computes on, and in which numbers."""

from __future__ import annotations

import os

import mlx.core as mx

from mlx_peft.backend.blas import FAST
from mlx_peft.config.schema import Precision
from mlx_peft.core import heap
from mlx_peft.core.border import Device
from mlx_peft.core.errors import UserError

DTYPES = {"float32": mx.float32, "tf32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}
"""tf32 is float32 here: whether a device rounds what it multiplies, ``MLX_ENABLE_TF32`` says for the whole process. It
is 0 unless it is set: see ``blas``."""


def use(name: str) -> None:
    """Has what is built from here on compute on the device of a name. Raises UserError where there is none here."""
    if name != "auto":
        raise UserError(
            f"device: {name} is for PyTorch: MLX chooses its device itself; write device: auto, or backend: torch"
        )


def set_up() -> None:
    """What the device wants to be told before a model is built."""
    if mx.metal.is_available():  # keep the model's pages resident, and freed ones within bounds; unverified on Metal
        working_set = int(mx.device_info()["max_recommended_working_set_size"])
        mx.set_wired_limit(working_set)
        mx.set_cache_limit(working_set // 4)
    heap.keep()


def version() -> str:
    """``mlx 0.32.4 (cpu)``; it says where MLX runs on the reference BLAS."""
    blas = "" if FAST else ", reference BLAS: install OpenBLAS"
    number = mx.__version__  # type: ignore[attr-defined]
    return f"mlx {number} ({mx.default_device().type.name}{blas})"


def computing() -> Device:
    """What MLX computes on. The CPU's attention is one product after the other; the fused kernels are of others."""
    on_cpu = mx.default_device().type == mx.cpu
    shared = on_cpu or mx.metal.is_available()
    said = {} if on_cpu else mx.device_info()
    # A device that does not say how many bytes it has is taken to have as many as any.
    memory = None if shared else int(said.get("memory_size", 2**40))
    rounds = not on_cpu and os.environ.get("MLX_ENABLE_TF32") == "1"
    return Device(memory, forms_attention=on_cpu, name=str(said.get("device_name", "")), rounds=rounds)


def usual_precision() -> Precision:
    """Of inference where nothing else is said: bfloat16 on a device, float32 on a CPU."""
    return "float32" if mx.default_device().type == mx.cpu else "bfloat16"


def synchronize() -> None:
    """Waits until everything that was asked for is computed."""
    mx.synchronize()


def peak_memory() -> int | None:
    """Bytes that arrays held at once, at most, since a model or trainer was built last; None where nobody counts."""
    return mx.get_peak_memory()
