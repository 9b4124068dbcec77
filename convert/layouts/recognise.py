"""What a file of tensors is: told by a tensor that one layout alone has, whatever prefix stands before it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from convert.files import listed, renamed
from convert.layouts import mlx_vision, npz, torchvision
from convert.layouts.layout import Layout
from mlx_peft.config.border import Tensors
from mlx_peft.config.errors import UserError, suggest

TIMM = "patch_embed.proj.weight"
"""timm's anchor, and that of all who took its names: DeiT, DINO, DINOv2, MAE."""

TRANSFORMERS = ("embeddings.patch_embeddings.projection.weight", "embeddings.patch_embedding.weight")
"""transformers' anchors: such a file alone does not say its norms' epsilon or its activation."""

LAYOUTS = (torchvision.LAYOUT, mlx_vision.LAYOUT, npz.LAYOUT)

WRAPPERS = ("module.", "model.", "backbone.", "encoder.")
"""What training code puts before the names of a whole model."""


def recognise(tensors: Tensors, path: Path, part: str | None = None) -> tuple[Layout | None, Tensors]:
    """A file's layout, None for timm's, and its tensors without a prefix.

    Args:
        part: which model is meant, where there are several: ``teacher``.

    Raises:
        UserError: for an unknown layout, and for a file of several models where ``part`` names none of them.
    """
    for layout, anchor in [(None, TIMM), *((layout, layout.anchor) for layout in LAYOUTS)]:
        prefixes = [name[: -len(anchor)] for name in tensors if re.search(rf"(^|\.){re.escape(anchor)}$", name)]
        if prefixes:
            return layout, _without(tensors, prefixes, path, part)
    if any(name.endswith(TRANSFORMERS) for name in tensors):
        raise UserError(
            f"{path}: tensors of transformers, which do not say all of the model: name the folder that has the "
            "config.json beside them"
        )
    if any(re.match(r"blocks\.\d+\.|(cls_token|pos_embed|head\.weight)$", name) for name in tensors):
        return None, tensors  # timm's, and what is wrong with it will be said
    anchors = [TIMM, *(layout.anchor for layout in LAYOUTS)]
    near = next((hint for name in tensors if (hint := suggest(name, anchors, 1))), "")
    raise UserError(
        f"{path}: not a ViT of timm, torchvision, mlx-image, transformers or Google: no tensor called "
        f"{' or '.join(anchors)}; it has {listed(sorted(tensors), 4)}{near}"
    )


def _without(tensors: Tensors, prefixes: Sequence[str], path: Path, part: str | None) -> Tensors:
    """The tensors of the model with one of the prefixes, named without it."""
    if len(prefixes) > 1 or part is not None:
        chosen = [prefix for prefix in prefixes if part is not None and part in prefix.split(".")]
        if len(chosen) != 1:
            shared = set.intersection(*(set(prefix.split(".")) for prefix in prefixes))
            parts = [next((one for one in prefix.split(".") if one not in shared), "") for prefix in prefixes]
            choice = " or ".join(f"--part {one}" for one in dict.fromkeys(parts) if one) or "no --part"
            raise UserError(f"{path}: it holds {len(prefixes)} model{'s'[: len(prefixes) > 1]}: say {choice}")
        outer = _outer(chosen[0])
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(outer)}
        prefixes = chosen
    [prefix] = prefixes
    return renamed(tensors, lambda name: _stripped(name, prefix, _outer(prefix)), path)


def _outer(prefix: str) -> str:
    """The prefix without its last ``backbone.``, beside which there may be a head."""
    return prefix.removesuffix("backbone.").removesuffix("encoder.") if prefix != "" else ""


def _stripped(name: str, prefix: str, outer: str) -> str:
    return name.removeprefix(prefix) if name.startswith(prefix) else name.removeprefix(outer)
