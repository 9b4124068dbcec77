"""A training step as a compiled program: the forward pass whole, and the backward pass that belongs to it."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal, TypeVar

import torch

from mlx_peft.core.errors import UserError

Function = TypeVar("Function", bound=Callable[..., Any])

PROGRAM: dict[str, Any] = {"dynamic": False, "options": {"fallback_random": True}}
"""How torch compiles it: for each form of its arguments alone, and dropping what would be dropped uncompiled."""

COMPILERS = ("torch._dynamo", "torch._inductor", "torch._functorch", "triton", "subprocess")
"""The modules of what torch's compiler raises, and what it calls: a C compiler that fails among it."""


def compiled(function: Function, device: torch.device, wanted: bool | Literal["auto"]) -> Function:
    """A function of tensors that is differentiated, compiled if that is wanted; auto: on CUDA, if it can be.

    Raises UserError where it is wanted and cannot be compiled.
    """
    lacking = missing(device)
    if wanted is True and lacking:
        raise UserError(f"train.compile: true needs {lacking}: install it, or leave train.compile out")
    if wanted is False or (wanted == "auto" and (device.type != "cuda" or lacking)):
        return function
    torch.compiler.reset()  # programs of an earlier trainer count among the few that torch keeps of one function
    return torch.compile(function, **PROGRAM)


def is_at_fault(error: BaseException) -> bool:
    """Whether an error is the compiler's own, or of what it calls: not the function's, nor a lack of memory."""
    modules = {kind.__module__ for kind in type(error).__mro__}
    return any(module.startswith(COMPILERS) for module in modules)


def must_do_without(error: Exception, wanted: bool | Literal["auto"], speaks: bool) -> None:
    """Says that the step is not compiled from here on, for whom ``speaks``. Raises UserError where it has to be."""
    reason = " ".join([line.strip() for line in str(error).splitlines() if line.strip()][:2]) or type(error).__name__
    if wanted is True:
        raise UserError(
            f"train.compile: true: torch cannot compile the step ({reason:.300}): leave train.compile out"
        ) from error
    if speaks:
        warnings.warn(f"torch cannot compile the step, which is computed uncompiled ({reason:.300})", stacklevel=3)


def missing(device: torch.device) -> str | None:
    """What torch's compiler needs for a device and does not find; None: nothing."""
    if device.type == "cuda" and find_spec("triton") is None:
        return "Triton (pip install triton)"
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "gcc", "clang++", "clang")):
        return "a C++ compiler (g++)"
    return None
