"""OFT as Hugging Face PEFT keeps it: an ``oft_R.weight`` a layer, what is above the diagonals of its blocks.

PEFT turns the other way round by Cayley's formula than by Neumann's series, and so do we. Its series of 3 terms is that
of 4; those of 1 and 2 are no rotations.
"""

from __future__ import annotations

import math
from typing import Any

from convert.adapters.layerwise import INPUTS, Layers, Layerwise
from mlx_peft.config.methods import OFT

SINCE = "0.18.0"
"""The version of PEFT that changed its Neumann series. It warns of a file that does not say it is as new."""


def _written(method: OFT, layers: Layers) -> dict[str, Any]:
    count = method.block_count
    return {
        "r": 0 if count is None else count,
        "oft_block_size": method.block_size if count is None else 0,
        "block_share": method.block_share,
        "use_cayley_neumann": method.cayley == "neumann",
        "num_cayley_neumann_terms": method.terms,
        "coft": False,
        "module_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_weights": True,
        "peft_version": SINCE,
    }


def _options(config: dict[str, Any], layers: Layers) -> dict[str, Any]:
    """The sizes of blocks are the tensors': PEFT takes the nearest that divide a layer's inputs.

    Raises ValueError for what is no rotation, or was another one in the version of PEFT that wrote it.
    """
    neumann = config.get("use_cayley_neumann", True)
    terms = max(config.get("num_cayley_neumann_terms", 5), 4)
    if neumann and _version(config) < _version({"peft_version": SINCE}):
        raise ValueError(f"PEFT before {SINCE} turned by another series: load and save it again with that version")
    if neumann and config.get("num_cayley_neumann_terms", 5) < 3:
        raise ValueError("a Neumann series of 1 or 2 terms is no rotation")
    sizes = {_size(held["oft_R"].shape[1]) for held in layers.values()}
    options = {"block_share": config.get("block_share", False), "terms": terms}
    options |= {"cayley": "neumann" if neumann else "exact"}
    if len(sizes) == 1:
        return options | {"block_size": sizes.pop()}
    if not config.get("r"):
        raise ValueError(f"its layers have blocks of several sizes, {sorted(sizes)}")
    return options | {"block_count": config["r"]}


def _size(numbers: int) -> int:
    """b of b (b - 1) / 2. Raises ValueError where there is none."""
    size = (1 + math.isqrt(1 + 8 * numbers)) // 2
    if size * (size - 1) // 2 != numbers:
        raise ValueError(f"{numbers} numbers do not fill what is above the diagonal of a block")
    return size


def _version(config: dict[str, Any]) -> tuple[int, ...]:
    """The first two numbers of the version that wrote it; 0 where it does not say."""
    return tuple(int(part) for part in str(config.get("peft_version") or "0.0").split(".")[:2])


LAYERWISE = Layerwise(
    "OFT",
    OFT,
    {"oft_R": INPUTS},
    {"oft_R": ("in / b", "b (b - 1) / 2")},
    _written,
    _options,
    {
        *("r", "oft_block_size", "block_share", "use_cayley_neumann", "num_cayley_neumann_terms"),
        *("eps", "init_weights", "module_dropout"),  # of COFT alone, of the start, of training
    },
    {"oft_R": "oft_R.weight"},
)
