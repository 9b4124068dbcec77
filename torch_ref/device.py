"""What PyTorch computes on, and in which numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mlx_peft.config.schema import Precision
from mlx_peft.core import heap
from mlx_peft.core.border import Device
from mlx_peft.core.errors import UserError
from mlx_peft.core.launched import told
from mlx_peft.core.text import counted

DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_named: torch.device | None = None  # by ``use``


def use(name: str) -> None:
    """Has what is built from here on compute on the device of a name. Raises UserError where there is none here."""
    global _named
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"device: {name} is not here: this PyTorch ({torch.__version__}) finds no Metal device")
    if kind == "cuda":
        _named = torch.device(kind, _gpu(name, number))
        torch.cuda.set_device(_named)  # whose memory is counted, and on whose streams work is put
    else:
        _named = torch.device(kind)


def _gpu(name: str, number: str) -> int:
    """Which of the CUDA devices is meant; of several processes each takes its own, if no number is said.

    Raises UserError where it is not here.
    """
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not there:
        raise UserError(
            f"device: {name} is not here: this PyTorch ({torch.__version__}) finds no CUDA device: write auto, or cpu"
        )
    own, beside = told("LOCAL_RANK", 0), told("LOCAL_WORLD_SIZE", 1)
    if number and beside > 1:
        raise UserError(f"device: {name} is one GPU, and each of {beside} processes takes one of its own: write cuda")
    if not number:
        if max(own + 1, beside) > there:  # told by all, of whom one speaks
            raise UserError(
                f"each process takes a GPU of its own: start no more than there are here, {there}, or write device: cpu"
            )
        return own
    if int(number) >= there:
        raise UserError(f"device: {name} is not here: {counted(there, 'CUDA device')}, counted from cuda:0")
    return int(number)


def set_up() -> None:
    """What the device wants to be told before a model is built."""
    heap.keep()


def device() -> torch.device:
    """What is built now computes on it: the device that was named last, or else CUDA where there is one, or the CPU."""
    if _named is None:
        use("auto")
    assert _named is not None
    return _named


@contextmanager
def multiplying(precision: Precision) -> Iterator[None]:
    """Within it CUDA rounds what it multiplies in float32 to TF32 if that is the precision, and else does not.

    The patch convolution too, which torch would always round. Other devices know no such rounding.
    """
    settings = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [each.allow_tf32 for each in settings]
    try:
        for each in settings:
            each.allow_tf32 = precision == "tf32"
        yield
    finally:
        for each, allowed in zip(settings, before, strict=True):
            each.allow_tf32 = allowed


def version() -> str:
    """``torch 2.14.1 (cpu)``"""
    name = torch.cuda.get_device_name(device()) if device().type == "cuda" else device().type
    return f"torch {torch.__version__} ({name})"


def computing() -> Device:
    """What PyTorch computes on. Attention is a fused kernel's, on the CPU too."""
    if device().type != "cuda":
        return Device(None, forms_attention=False)
    found = torch.cuda.get_device_properties(device())
    return Device(found.total_memory, forms_attention=False, name=found.name, rounds=found.major >= 8)


def usual_precision() -> Precision:
    """Of inference where nothing else is said: bfloat16 on a device, float32 on a CPU."""
    return "float32" if device().type == "cpu" else "bfloat16"


def synchronize() -> None:
    """Waits until everything that was asked for is computed."""
    if device().type == "cuda":
        torch.cuda.synchronize()
    elif device().type == "mps":
        torch.mps.synchronize()


def peak_memory() -> int | None:
    """Bytes that arrays held at once, at most, since a model or trainer was built last; None where nobody counts."""
    return torch.cuda.max_memory_allocated() if device().type == "cuda" else None
