"""RoAd as Hugging Face PEFT keeps it: a ``road_theta`` and a ``road_alpha`` a layer, in the order of its outputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from convert.adapters.layerwise import Layers, Layerwise, along
from convert.adapters.parts import parts_of
from mlx_peft.config.methods import RoAd
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.vit.sites import PARTS


def _written(method: RoAd, layers: Layers) -> dict[str, Any]:
    return {"variant": f"road_{method.variant}", "group_size": method.group_size, "init_weights": True}


def _options(config: dict[str, Any], layers: Layers) -> dict[str, Any]:
    variant = str(config.get("variant", "road_1")).removeprefix("road_")
    return {
        "variant": int(variant) if variant in ("1", "2", "4") else variant,
        "group_size": config.get("group_size", 64),
    }


LAYERWISE = Layerwise(
    "ROAD",
    RoAd,
    {"road_theta": along(fill=0), "road_alpha": along(fill=1)},
    dict.fromkeys(("road_theta", "road_alpha"), ("out variant / 2",)),
    _written,
    _options,
    {"variant", "group_size", "init_weights"},
    moves="pairs of outputs move that are not trained here",
)


def _apart(method: RoAd, tensors: Tensors) -> Tensors:
    """The tensors with q, k and v on layers of their own. Raises UserError where a group has outputs of two of them."""
    for name, tensor in tensors.items():
        layer, _, last = name.rpartition(".")
        if last == "road_theta" and layer.endswith(".qkv") and not parts_of(method.targets, layer):
            rows = 2 * len(tensor) // method.variant // len(PARTS)
            if rows % method.group_size:
                raise UserError(
                    f"RoAd whose groups of {method.group_size} outputs do not divide the {rows} of each of q, k and v "
                    "is not written where these are layers of their own: train it with a group_size that does"
                )
    return LAYERWISE.apart(method, tensors)


FORMAT = replace(LAYERWISE.format, apart=_apart)
"""How its adapters lie on disk."""
