"""LoHa as Hugging Face PEFT keeps it: four factors a layer, of two matrices that are multiplied element by element."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from convert.adapters.block_layers import must_be_numbers, must_have_rank
from convert.adapters.layerwise import PLACED, STACKED, Layers, Layerwise
from convert.adapters.separate import padded
from convert.adapters.targeting import pattern
from mlx_peft.config.methods import LoHa
from mlx_peft.config.methods.lora import of_pattern

LEFT, RIGHT = ("hada_w1_a", "hada_w2_a"), ("hada_w1_b", "hada_w2_b")


def _written(method: LoHa, layers: Layers) -> dict[str, Any]:
    """The parts of a fused qkv become one adapter of (parts * r), and alpha grows with it so that the scaling stays."""
    ranks = {layer: len(held[RIGHT[0]]) for layer, held in layers.items()}
    alphas = {layer: method.alpha * (rank // method.rank) for layer, rank in ranks.items()}
    (rank, rank_pattern), (alpha, alpha_pattern) = pattern(ranks), pattern(alphas)
    return {
        "r": rank,
        "alpha": alpha,
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
        "rank_dropout": 0.0,
        "module_dropout": 0.0,
        "use_effective_conv2d": False,
        "init_weights": True,
    }


def _levelled(config: dict[str, Any], layers: Layers, path: Path) -> Layers:
    """All layers with the largest rank, filled up with zeros, and the scaling of most: what is beyond it is in A_1."""
    must_be_numbers(config, "alpha", path)
    most = max(len(held[RIGHT[0]]) for held in layers.values())
    found = {}
    for layer, held in layers.items():
        rank, alpha = (
            of_pattern(config.get(pattern) or {}, layer) or config[key]
            for key, pattern in (("r", "rank_pattern"), ("alpha", "alpha_pattern"))
        )
        for name in (*LEFT, *RIGHT):
            must_have_rank(layer, held[name].shape[name in LEFT], rank, path)
        times = (alpha / rank) / (config["alpha"] / config["r"])
        own = {name: padded(held[name].T, most).T for name in LEFT}
        own |= {name: padded(held[name], most) for name in RIGHT}
        with np.errstate(over="ignore"):  # the next line tells
            own[LEFT[0]] = own[LEFT[0]] * np.float32(times)
        if not np.isfinite(own[LEFT[0]]).all():
            raise ValueError("the scalings of its layers are too far apart for one")
        found[layer] = own
    return found


def _options(config: dict[str, Any], layers: Layers) -> dict[str, Any]:
    most = max(len(held[RIGHT[0]]) for held in layers.values())
    scaling = config["alpha"] / config["r"]
    return {"rank": most, "alpha": config["alpha"] if most == config["r"] else scaling * most}


LAYERWISE = Layerwise(
    "LOHA",
    LoHa,
    {LEFT[0]: PLACED, RIGHT[0]: STACKED, LEFT[1]: PLACED, RIGHT[1]: STACKED},
    dict.fromkeys(LEFT, ("out", "r")) | dict.fromkeys(RIGHT, ("r", "in")),
    _written,
    _options,
    {
        *("r", "alpha", "rank_pattern", "alpha_pattern"),
        *("init_weights", "module_dropout", "rank_dropout", "use_effective_conv2d"),  # of the start, training, images
    },
    levelled=_levelled,
)
