"""What a model's name stands for: architecture, preprocessing and published weights, from a data file made with timm.

``python -m torch_ref.tools.registry`` writes the data file; nothing here needs timm.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from mlx_peft.core.errors import LONGEST_NAME, Command, UserError, shortened, shown, suggest
from mlx_peft.core.problems import MOST, explain
from mlx_peft.vit.architecture import Architecture, Preprocessing
from mlx_peft.vit.others import ours

FILE = Path(__file__).with_name("architectures.json")


@dataclass(frozen=True)
class Resampling:
    """How timm resizes the position grid and the patch kernels of a checkpoint."""

    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    antialias: bool = True
    align_corners: bool = False


@dataclass(frozen=True)
class Entry:
    """A name of timm's and one set of published weights.

    Attributes:
        name: with the tag: ``deit_tiny_patch16_224.fb_in1k``; without where no weights were published.
        tag: which of the published weights; None where there are none.
        architecture: with the image size of these weights.
        preprocessing: None where no weights were published, since then no normalisation is known.
        resampling: how a grid of another size is made from these weights.
        num_classes: width of the head in the weights; 0 where they have none.
        hub_id: None where the hub has no copy.
        hub_filename: the file in the hub's repository.
        license: as timm states it.
        gated: whether the hub asks for consent before a download; None where it is unknown: timm does not say.
        note: a caution of timm's about these weights.
    """

    name: str
    tag: str | None
    architecture: Architecture
    preprocessing: Preprocessing | None
    resampling: Resampling
    num_classes: int = 0
    hub_id: str | None = None
    hub_filename: str | None = None
    license: str | None = None
    gated: bool | None = None
    note: str | None = None


@functools.cache
def _data() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return data


def names() -> list[str]:
    """Every architecture by name, without tags."""
    return list(_data()["models"])


def tags(name: str) -> list[str]:
    """The published weights of an architecture, timm's default first."""
    return list(_data()["models"][name]["tags"])


def meant(name: str) -> str:
    """What a name that is none of ours stands for, as the tail of a message; the nearest names; or nothing."""
    known = {model: entry["tags"] for model, entry in _data()["models"].items()}
    other = ours(name, known) if len(name) <= LONGEST_NAME else None
    hint = suggest(name.partition(".")[0], known) if other is None else f"; did you mean {other!r}?"
    repository = "; a repository of the hub can be named as the weights, beside the model's name"
    return hint + (repository if name.count("/") == 1 else "")


def find(name: str) -> Entry:
    """The entry of ``architecture`` (with timm's default weights) or ``architecture.tag``.

    Raises:
        UserError: for an unknown architecture or tag, with the nearest ones, and for one that is no plain ViT, with the
            reason.
    """
    data = _data()
    base, _, tag = name.partition(".")
    if base in data["left_out"]:
        raise UserError(f"model {base!r} is not supported: {data['left_out'][base]}")
    if base not in data["models"]:
        raise UserError(f"unknown model {shown(name)}{meant(name)}", command=Command("see", ("ls", "models")))
    model = data["models"][base]
    architecture = Architecture(**model["architecture"])
    resampling = Resampling(**model.get("resampling", {}))
    if tag and tag not in model["tags"]:
        known = f"its tags: {', '.join(model['tags'])}" if model["tags"] else "it has none"
        raise UserError(
            f"model {base!r} has no weights with the tag {shown(tag)}{suggest(tag, model['tags'])} ({known})"
        )
    if not model["tags"]:
        return Entry(base, None, architecture, None, resampling)

    tag = tag or next(iter(model["tags"]))
    row = data["tag_defaults"] | model["tags"][tag]
    mean, std = data["normalizations"][row["normalization"]]
    return Entry(
        name=f"{base}.{tag}",
        tag=tag,
        architecture=architecture.model_copy(update={"img_size": row.get("img_size", architecture.img_size)}),
        preprocessing=Preprocessing(
            mean=mean,
            std=std,
            interpolation=row["interpolation"],
            crop_pct=row["crop_pct"],
            crop_mode=row["crop_mode"],
        ),
        resampling=resampling,
        num_classes=row["num_classes"],
        hub_id=row["hub_id"] and row["hub_id"].format(name=base, tag=tag),
        hub_filename=row["hub_filename"],
        license=row["license"],
        gated=row.get("gated"),
        note=row["note"],
    )


def altered(architecture: Architecture, changes: Mapping[str, Any], where: str) -> Architecture:
    """The architecture with some of its fields changed.

    Args:
        where: what the changes are called in an error: ``model.args``.

    Raises:
        UserError: for an unknown field, with the nearest ones, or a value that does not fit.
    """
    fields = Architecture.model_fields
    if unknown := [name for name in changes if name not in fields]:
        named = [
            f"{where}.{shortened(name, 60)}: no such field of a ViT{suggest(name, fields)}" for name in unknown[:MOST]
        ]
        raise UserError("\n".join(named), arguments=("args",))
    try:
        return Architecture.model_validate(architecture.model_dump() | dict(changes))
    except ValidationError as error:
        found = explain(error, Architecture)
        lines = [f"{'.'.join([where, *map(str, place)])}: {message}" for place, message in found.items()]
        raise UserError("\n".join(lines[:MOST]), arguments=("args",)) from error
