"""LayerNorm tuning as Hugging Face PEFT keeps it: a whole copy of each norm, ``P.ln_tuning_layers.weight``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from convert.adapters.block_layers import must_ask_no_more
from convert.files import listed
from mlx_peft.config.methods import LayerNorm
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.vit.parameters import is_head

COPY = "ln_tuning_layers"


def pack(method: LayerNorm, tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Configuration and tensors for PEFT.

    Every norm is named whole, for PEFT's ``norm`` would also mean timm's identities of that name, and it stops at them.
    PEFT warns of timm's own class of norm ("Unsupported layer type"), and copies it all the same.
    """
    norms = dict.fromkeys(name.rpartition(".")[0] for name in tensors if not is_head(name))
    packed = {}
    for name, tensor in tensors.items():
        norm, _, kind = name.rpartition(".")
        packed[name if is_head(name) else f"{norm}.{COPY}.{kind}"] = tensor
    return {"target_modules": "|".join(map(re.escape, sorted(norms)))}, packed


def unpack(method: LayerNorm, packed: Tensors) -> Tensors:
    """What ``pack`` was given, bit for bit. Raises ValueError where the tensors are not of this method."""
    tensors, unknown = _by_own_names(packed)
    if unknown:
        raise ValueError(f"there is an unknown tensor {unknown[0]}")
    return tensors


def from_peft(config: dict[str, Any], packed: Tensors, path: Path) -> tuple[LayerNorm, Tensors]:
    """An adapter that PEFT itself wrote for a timm ViT.

    Raises:
        UserError: where it holds copies of other layers than norms, or of some of a block's norms only, or of the last
            norm and some blocks': the method here trains every norm, or every one in some blocks.
    """
    must_ask_no_more(config, (), path)
    tensors, unknown = _by_own_names(packed)
    if unknown:
        raise UserError(f"{path}: tensors that are no weight or bias of a norm: {listed(unknown)}")
    blocks = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")})
    norms = [f"blocks.{block}.{norm}" for block in blocks for norm in ("norm1", "norm2")]
    outside = any(not is_head(name) and not name.startswith("blocks.") for name in tensors)
    lacking = [norm for norm in norms if f"{norm}.weight" not in tensors]
    if outside:
        lacking += [f"blocks.{block}" for block in range(max(blocks, default=-1) + 1) if block not in blocks]
    if lacking or not blocks:
        raise UserError(
            f"{path}: LayerNorm tuning here is of every norm, or of every norm in some blocks, but the adapter has "
            f"nothing for {listed(lacking) or 'any block'}"
        )
    return LayerNorm.model_validate({"blocks": None if outside else tuple(blocks)}), tensors


def _by_own_names(packed: Tensors) -> tuple[Tensors, list[str]]:
    """The tensors under the norms' own names, and the names of those that are neither a norm's nor a head's."""
    tensors, unknown = {}, []
    for name, tensor in packed.items():
        own = name.replace(f".{COPY}.", ".")
        if is_head(name) or (own != name and LayerNorm().selects(own)):
            tensors[own] = tensor
        else:
            unknown.append(name)
    return tensors, sorted(unknown)
