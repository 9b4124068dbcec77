"""LoKr as Hugging Face PEFT keeps it: the two matrices of a Kronecker product a layer, or the factors of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from convert.adapters.layerwise import Layers, Layerwise, Side
from mlx_peft.config.methods import LoKr
from mlx_peft.core.errors import UserError


def _refused(tensor: np.ndarray, layer: str, parts: Sequence[str]) -> dict[str, np.ndarray]:
    raise UserError(
        "LoKr on a whole qkv has no equal where q, k and v are layers of their own: their rows alone are no Kronecker "
        "products of the sizes that PEFT would give them"
    )


def _none(shares: Sequence[np.ndarray], name: str) -> np.ndarray:
    raise ValueError(f"{name}: q, k and v are no parts of one Kronecker product")


WHOLE = Side(lambda tensor, parts: tensor, lambda tensor, parts: tensor, _refused, _none)
"""Of whole layers alone."""


def _written(method: LoKr, layers: Layers) -> dict[str, Any]:
    return {
        "r": method.rank,
        "alpha": method.alpha,
        "decompose_both": method.decompose_both,
        "decompose_factor": -1 if method.factor is None else method.factor,
        "rank_pattern": {},
        "alpha_pattern": {},
        "rank_dropout": 0.0,
        "rank_dropout_scale": False,
        "module_dropout": 0.0,
        "use_effective_conv2d": False,
        "init_weights": True,
    }


def _options(config: dict[str, Any], layers: Layers) -> dict[str, Any]:
    factor = config.get("decompose_factor", -1)
    return {
        "rank": config["r"],
        "alpha": config["alpha"],
        "decompose_both": config.get("decompose_both", False),
        "factor": None if factor == -1 else factor,
    }


LAYERWISE = Layerwise(
    "LOKR",
    LoKr,
    {f"lokr_w{number}{factor}": WHOLE for number in (1, 2) for factor in ("", "_a", "_b")},
    {f"lokr_w{number}{factor}": ("rows", "columns") for number in (1, 2) for factor in ("", "_a", "_b")},
    _written,
    _options,
    {
        *("r", "alpha", "decompose_both", "decompose_factor"),
        # Of the start, of training, and of images' convolutions.
        *("init_weights", "module_dropout", "rank_dropout", "rank_dropout_scale", "use_effective_conv2d"),
    },
    some=True,
)
