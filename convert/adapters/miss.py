"""MiSS as Hugging Face PEFT keeps it: a ``miss_block`` a layer, ``(r, out)``, or ``(r, mini_r)`` that is repeated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from convert.adapters.layerwise import Layers, Layerwise, along
from mlx_peft.config.methods import MiSS
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError


def _written(method: MiSS, layers: Layers) -> dict[str, Any]:
    return {
        "r": method.rank,
        "mini_r": method.mini or 1,
        "miss_dropout": method.dropout,
        "init_weights": True if method.mini is None else "mini",
        "bias": "none",
    }


def _options(config: dict[str, Any], layers: Layers) -> dict[str, Any]:
    mini = config["mini_r"] if config.get("init_weights") == "mini" else None
    return {"rank": config["r"], "mini": mini, "dropout": config.get("miss_dropout", 0)}


LAYERWISE = Layerwise(
    "MISS",
    MiSS,
    {"miss_block": along(axis=1)},
    {"miss_block": ("r", "out")},
    _written,
    _options,
    {"r", "mini_r", "miss_dropout", "init_weights"},
)


def _apart(method: MiSS, tensors: Tensors) -> Tensors:
    if method.mini is not None and "qkv" in method.targets:
        raise UserError(
            "MiSS whose columns are repeated over a whole qkv is not written where q, k and v are layers of their own"
        )
    return LAYERWISE.apart(method, tensors)


def _from_peft(config: dict[str, Any], packed: Tensors, path: Path) -> tuple[MiSS, Tensors]:
    """Raises UserError for the variant Bat, whose update is a product with the weight itself."""
    if config.get("init_weights") == "bat":
        raise UserError(
            f"{path}: init_weights 'bat' multiplies the weight, and is another method than MiSS, which adds to it"
        )
    return LAYERWISE.from_peft(config, packed, path)


FORMAT = replace(LAYERWISE.format, apart=_apart, from_peft=_from_peft)
"""How its adapters lie on disk."""
