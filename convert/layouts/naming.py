"""Which of timm's names an architecture goes by: the nearest one, and whether one that was given fits."""

from __future__ import annotations

import functools
from collections.abc import Collection

from convert.canonical import PATCHES
from convert.layouts.layout import differing
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.vit.architecture import RELATIVE, Architecture
from mlx_peft.vit.parameters import last
from mlx_peft.vit.registry import find, names
from mlx_peft.vit.relative import TABLE
from mlx_peft.vit.shapes import shapes

DECISIVE = (
    *("embed_dim", "depth", "num_heads", "patch_size", "distilled", "mlp_layer", "mlp_ratio", "class_token"),
    "positions",
)
"""A model that differs in one of these fields is no longer what its name says."""


@functools.lru_cache
def _every() -> dict[str, Architecture]:
    return {name: find(name).architecture for name in names()}


def nearest(architecture: Architecture) -> str:
    """The name whose architecture differs least, of those of its family, and first in what a name is for.

    Of equals, it is one of the same image size, with published weights, and called ViT.
    """

    def distance(name: str) -> tuple[bool, int, int, bool, bool, bool]:
        other = _every()[name]
        odd = [fault.partition(":")[0] for fault in differing(architecture, other, {"img_size"})]
        unpublished = find(name).preprocessing is None
        decisive = sum(key in DECISIVE for key in odd)
        resized, plain = architecture.img_size != other.img_size, name.startswith("vit_")
        return "family" in odd, decisive, len(odd), resized, unpublished, not plain

    return min(_every(), key=distance)


def must_agree(name: str, architecture: Architecture, source: str, changed: Collection[str]) -> None:
    """Raises UserError where a name stands for another model than the weights are.

    Args:
        changed: fields that the user set, in which the name need not agree.
    """
    odd = differing(architecture, find(name).architecture, Architecture.model_fields.keys() - {*DECISIVE})
    if odd := [fault for fault in odd if fault.partition(":")[0] not in changed]:
        raise UserError(
            f"model.name: {source} is no {name.partition('.')[0]}: it has {', '.join(odd)}; the nearest name is "
            f"{nearest(architecture)}"
        )


def fitting(tensors: Tensors) -> list[str]:
    """The names whose parameters these are, by shape; the number of classes and the size of the grid are free."""
    found = []
    kernels = tensors.get(PATCHES)
    if kernels is None or kernels.ndim != 4:
        return []
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    for name, architecture in _every().items():
        if (architecture.depth, architecture.embed_dim, architecture.patch_size) == (depth, *kernels.shape[::2][:2]):
            wanted = {key: shape for key, shape in shapes(architecture, 1).items() if not _free(key)}
            given = {key: tensor.shape for key, tensor in tensors.items() if not _free(key)}
            tables = any(last(key) == TABLE for key in tensors)
            if wanted == given and (
                ("pos_embed" in tensors, tables) == (architecture.pos_embed, architecture.positions in RELATIVE)
            ):
                found.append(name)
    return found


def _free(name: str) -> bool:
    return name.startswith(("head.", "head_dist.")) or last(name) in ("pos_embed", TABLE)
