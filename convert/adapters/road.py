"""RoAd as Hugging Face PEFT keeps it: a ``road_theta`` and a ``road_alpha`` a layer, in the order of its outputs."""

from __future__ import annotations

from typing import Any

from convert.adapters.layerwise import Layers, Layerwise, along
from mlx_peft.config.methods import RoAd


def _written(method: RoAd, layers: Layers) -> dict[str, Any]:
    return {"variant": f"road_{method.variant}", "group_size": method.group_size, "init_weights": True}


def _options(config: dict[str, Any], layers: Layers) -> dict[str, Any]:
    variant = str(config.get("variant", "road_1")).removeprefix("road_")
    return {"variant": int(variant), "group_size": config.get("group_size", 64)}


LAYERWISE = Layerwise(
    "ROAD",
    RoAd,
    {"road_theta": along(fill=0), "road_alpha": along(fill=1)},
    _written,
    _options,
    {"variant", "group_size", "init_weights"},
    moves="pairs of outputs move that are not trained here",
)
