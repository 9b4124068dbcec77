"""What a file of tensors is: told by a tensor that one layout alone has, whatever prefix stands before it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from convert.files import listed, renamed
from convert.layouts import mlx_vision, npz, torchvision
from convert.layouts.layout import Layout
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError, suggest
from mlx_peft.core.text import counted

TIMM = "patch_embed.proj.weight"
"""timm's anchor, and that of all who took its names: DeiT, DINO, DINOv2, MAE."""

TRANSFORMERS = tuple(
    f"embeddings.{patches}.weight" for patches in ("patch_embeddings.projection", "patch_embedding", "patch_embeddings")
)
"""transformers' anchors: such a file alone does not say its norms' epsilon or its activation."""

LAYOUTS = (torchvision.LAYOUT, mlx_vision.LAYOUT, npz.LAYOUT)

HEADS = ("head.", "head_dist.", "heads.", "fc_norm.")
"""Tensors of these names belong to a model though they stand outside of its prefix: a classifier was put on it."""

SEARCHED = 1000
"""A misspelt name is looked for among so many tensors: a file may have a million."""

Recognised = tuple[Layout | None, Tensors, tuple[str, ...]]


def recognise(tensors: Tensors, path: Path, part: str | None = None) -> Recognised:
    """A file's layout, None for timm's, its tensors without a prefix, and notes on what was left out.

    Args:
        part: which model is meant, where there are several: ``teacher``.

    Raises:
        UserError: for an unknown layout, and for a file of several models where ``part`` names none of them.
    """
    for layout, anchor in [(None, TIMM), *((layout, layout.anchor) for layout in LAYOUTS)]:
        prefixes = [name[: -len(anchor)] for name in tensors if re.search(rf"(^|\.){re.escape(anchor)}$", name)]
        if prefixes:
            return layout, *_without(tensors, prefixes, path, part)
    if any(name.endswith(TRANSFORMERS) for name in tensors):
        raise UserError(
            f"{path} holds tensors of transformers, which do not describe the whole model: name the folder that has "
            "the config.json beside them"
        )
    if any(re.match(r"blocks\.\d+\.|(cls_token|pos_embed|head\.weight)$", name) for name in tensors):
        return None, tensors, ()  # timm's, and what is wrong with it will be said
    anchors = [TIMM, *(layout.anchor for layout in LAYOUTS)]
    near = next((hint for name in list(tensors)[:SEARCHED] if (hint := suggest(name, anchors, 1))), "")
    raise UserError(
        f"{path} is not a ViT of timm, torchvision, mlx-image, transformers or Google: it has no tensor called "
        f"{' or '.join(anchors)}, but {listed(sorted(tensors), 4)}{near}"
    )


def _without(
    tensors: Tensors, prefixes: Sequence[str], path: Path, part: str | None
) -> tuple[Tensors, tuple[str, ...]]:
    """The tensors of the model with one of the prefixes, named without it, and a note on what stood beside it."""
    [prefix, *others] = prefixes
    if others or part is not None:
        chosen = [prefix for prefix in prefixes if f".{part}." in f".{prefix}"]
        if len(chosen) != 1:
            parts = " or ".join(_parts(prefixes))
            choice = f"choose the part {parts}" if parts else "leave the part out"
            raise UserError(f"{path} holds {counted(len(prefixes), 'model')}: {choice}", arguments=("part",))
        [prefix] = chosen
    outer = _outer(prefix)
    kept = (outer,) if outer and others else (prefix if others else outer, *HEADS)
    inside = {name: tensor for name, tensor in tensors.items() if name.startswith(kept)}
    elsewhere = tuple(_outer(other) for other in prefixes if other != prefix)
    outside = sorted(name for name in tensors.keys() - inside.keys() if not name.startswith(elsewhere))
    notes = (f"outside of {outer[:-1]}, left out: {listed(outside)}",) if outside else ()
    return renamed(inside, lambda name: _stripped(name, prefix, outer), path), notes


def _parts(prefixes: Sequence[str]) -> list[str]:
    """A name for each of several prefixes that no other has, the outermost; the whole prefix where there is none."""
    count = Counter(one for prefix in prefixes for one in set(prefix.split(".")))
    named = [next((one for one in prefix.split(".") if one and count[one] == 1), prefix[:-1]) for prefix in prefixes]
    return [one for one in named if one] if len(prefixes) > 1 else []


def _outer(prefix: str) -> str:
    """The prefix without its last ``backbone.``, beside which there may be a head."""
    return re.sub(r"(?<![^.])(encoder\.)?(backbone\.)?$", "", prefix)


def _stripped(name: str, prefix: str, outer: str) -> str:
    return name.removeprefix(prefix) if name.startswith(prefix) else name.removeprefix(outer)
