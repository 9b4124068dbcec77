"""BOFT as Hugging Face PEFT keeps it: the ``boft_R`` of a layer's butterflies, and ``boft_s`` of its outputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from convert.adapters.layerwise import INPUTS, Layers, Layerwise, along
from mlx_peft.config.methods import BOFT
from mlx_peft.core.border import Tensors


def _written(method: BOFT, layers: Layers) -> dict[str, Any]:
    return {
        "boft_block_size": method.block_size if method.block_count is None else 0,
        "boft_block_num": method.block_count or 0,
        "boft_n_butterfly_factor": method.factors,
        "boft_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_weights": True,
    }


def _options(config: dict[str, Any], layers: Layers) -> dict[str, Any]:
    """The tensors say how many butterflies there are: without its CUDA extension PEFT makes one, whatever is asked."""
    shapes = [held["boft_R"].shape for held in layers.values()]
    options: dict[str, Any] = {"factors": shapes[0][0]}
    if config.get("boft_block_num"):
        return options | {"block_count": config["boft_block_num"]}
    return options | {"block_size": shapes[0][-1]}


LAYERWISE = Layerwise(
    "BOFT",
    BOFT,
    {"boft_R": INPUTS, "boft_s": along(fill=1)},
    {"boft_R": ("m", "in / b", "b", "b"), "boft_s": ("out", "1")},
    _written,
    _options,
    {
        *("boft_block_size", "boft_block_num", "boft_n_butterfly_factor"),
        *("boft_dropout", "init_weights"),  # of training, and of the start
    },
)


def _notes(method: BOFT, tensors: Tensors) -> list[str]:
    own = LAYERWISE.notes(method, tensors)
    if method.factors > 1:
        there = "Hugging Face PEFT opens an adapter of"
        own.append(f"{there} {method.factors} butterflies only where it has its CUDA extension")
    return own


FORMAT = replace(LAYERWISE.format, notes=_notes)
"""How its adapters lie on disk."""
