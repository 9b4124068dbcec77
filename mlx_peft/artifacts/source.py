"""What a conversion starts from: a run, an adapter, a file or folder of any layout, or a name on the hub."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path
from typing import Any, Literal

import numpy as np

from convert.adapters import lora_vit
from convert.adapters.formats import FORMATS
from convert.adapters.peft import Adapter
from convert.base import Base, whole
from convert.checkpoint import Checkpoint
from convert.layouts.layout import Asked
from convert.named import open_named
from convert.timm.config import in_our_words
from mlx_peft.artifacts.ahead import method_in
from mlx_peft.artifacts.load import Loaded, described, load_run, put_on
from mlx_peft.artifacts.place import find_adapter
from mlx_peft.config.methods import MethodConfig
from mlx_peft.config.schema import Model
from mlx_peft.core.errors import UserError
from mlx_peft.protocols.loading import load_foreign
from mlx_peft.training.run import RunFolder
from mlx_peft.training.whereabouts import adapter_in
from mlx_peft.vit.registry import altered

Logits = Callable[[np.ndarray], np.ndarray]
"""A function from uint8 images ``(batch, size, size, 3)`` to float32 logits ``(batch, classes)``."""

Takes = Callable[[type[MethodConfig]], None]

OPENERS = {"torchvision": "torchvision", "transformers": "transformers", "npz": "npz", "timm": "timm"}
"""By layout, how a source is opened by its own library; mlx-image's is not asked for."""


@dataclass(frozen=True)
class Source:
    """A model that was found.

    Attributes:
        kind: what it was recognised as: ``timm``, ``torchvision``, ``run``, ...
        base: complete, plain, at its own image size; with an adapter, merged.
        asked: the same as it is to become: another image size, fields that the user set.
        classes: names of the head's rows; empty where they are unknown.
        references: whoever computes the same on its own, by name: the library that it is from, a run's backend.
        adapter: the adapter that it is, whole; None where it is none.
        bare: the base that the adapter belongs on; None where there is no adapter, or the base is quantised.
    """

    kind: str
    base: Base
    asked: Base
    classes: tuple[str, ...]
    references: Mapping[str, Logits]
    adapter: Adapter | None = None
    bare: Base | None = None


def open_source(
    source: str,
    *,
    model: str | None = None,
    weights: str | None = None,
    args: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    part: str | None = None,
    adapter: str | None = None,
    alpha: int | None = None,
    backend: Literal["mlx", "torch"] = "mlx",
    takes: Takes = lambda method: None,
) -> Source:
    """Finds a model and recognises what it is.

    Args:
        source: a path, a name of timm's, or a repository of the hub.
        model, args: the model's name and fields of its architecture, for a source that does not say them.
        weights: where those of the base of a run or an adapter are now, if the user says so.
        image_size: pixels that it is to have, or of an adapter that names no model, that it has; its own where None.
        part: which model is meant, in a file of several.
        adapter: which adapter is meant, in a folder of several.
        alpha: of an old LoRA-ViT file, which does not say it; None: none.
        backend: what merges an adapter.
        takes: raises UserError where what is asked for cannot be made of an adapter of the method, merged or not.

    Raises:
        UserError: where there is no such model, or it leaves open what it is.
    """
    path = Path(os.path.expanduser(source))
    old = lora_vit.is_one(path)
    if alpha is not None and not old:
        raise UserError(f"{source} is no old file of LoRA-ViT, and alpha is only for those", arguments=("alpha",))
    if old or (path.is_dir() and (adapter is not None or adapter_in(path) or RunFolder(path).config.exists())):
        if args or part:
            raise UserError(
                "a run or an adapter says what it is: give it neither fields nor a part", arguments=("args", "part")
            )
        if model is None and image_size is not None:
            raise UserError(
                "a run or an adapter of ours says its own image size; with another's, name the model too",
                arguments=("image_size", "model"),
            )
        named = None if model is None else Model(name=model, weights=weights or "timm", image_size=image_size)
        if old:
            return _old(path, named, backend, weights, alpha)
        return _run(path, named, adapter, backend, weights, takes)
    if adapter is not None or weights is not None:
        raise UserError(
            f"an adapter's name or its weights were given, and {source} is no adapter", arguments=("adapter", "weights")
        )
    return _model(source, path, Asked(model, args or {}), part, image_size)


def _model(source: str, path: Path, named: Asked, part: str | None, image_size: int | None) -> Source:
    """A whole model, from a file, a folder or the hub; whoever else opens it is the reference."""
    args = named.args
    path, found = open_named(source, path, named, part)
    checkpoint = at_its_grid(found, args)
    base = whole(checkpoint, args={} if checkpoint.described else args)
    changes = {key: value for key, value in args.items() if getattr(base.architecture, key, None) != value}
    asked = (
        whole(checkpoint, image_size, args) if changes or image_size not in (None, base.architecture.img_size) else base
    )
    opener = _opener(checkpoint, path)
    references = {} if opener is None else {opener: foreign(opener, path, base)}
    return Source(checkpoint.layout, base, asked, checkpoint.classes, references)


def foreign(opener: str, path: Path, base: Base) -> Logits:
    """A file or folder as its own library opens it. The function raises ImportError where it is not installed."""

    def logits(images: np.ndarray) -> np.ndarray:
        return load_foreign().logits(opener, path, base, images)

    return logits


def at_its_grid(checkpoint: Checkpoint, args: Mapping[str, Any]) -> Checkpoint:
    """A file of timm's tensors at the image size of its position grid: its name's is only what is usual.

    Raises:
        UserError: where the user's fields do not fit it.
    """
    positions = (checkpoint.tensors or {}).get("pos_embed")
    if checkpoint.described or checkpoint.layout != "timm" or "img_size" in args or positions is None:
        return checkpoint
    usual = altered(checkpoint.architecture, args, "args")
    patches = (positions.shape[1] if positions.ndim == 3 else 0) - usual.position_tokens + usual.grid_size**2
    side = isqrt(max(patches, 0))
    if side in (0, usual.grid_size) or side**2 != patches:
        return checkpoint  # as usual, or what does not fit will be said
    size = altered(usual, {"img_size": side * usual.patch_size}, f"{checkpoint.source}: pos_embed").img_size
    return replace(checkpoint, architecture=checkpoint.architecture.model_copy(update={"img_size": size}))


def _opener(checkpoint: Checkpoint, path: Path) -> str | None:
    if checkpoint.layout == "timm" and path.is_dir() and in_our_words(path):
        return None
    if checkpoint.layout == "timm" and path.is_dir() and checkpoint.quantization is None:
        return "timm folder"
    if checkpoint.layout == "timm" and not path.exists():
        return "timm hub"
    return OPENERS.get(checkpoint.layout)


def _run(
    path: Path,
    named: Model | None,
    adapter: str | None,
    backend: Literal["mlx", "torch"],
    weights: str | None,
    takes: Takes,
) -> Source:
    """A run or an adapter, merged; what it computes unmerged is the reference, and what PEFT computes with it."""
    place = find_adapter(path, adapter)
    if (method := method_in(place)) is not None:
        takes(method)
        method.must_merge()
    # Files are compared with all tokens: others know of no fewer.
    loaded = load_run(path, backend, name=adapter, precision="float32", model=named, weights=weights, tokens=None)
    return _merged(loaded, "run" if RunFolder(path).config.exists() else "peft", place, backend)


def _old(
    path: Path, named: Model | None, backend: Literal["mlx", "torch"], weights: str | None, alpha: int | None
) -> Source:
    """A file of LoRA-ViT's, merged; of its own library nothing is asked."""
    adapter, notes = lora_vit.read(path, alpha)
    loaded = put_on(adapter, path, backend, precision="float32", model=named, weights=weights, tokens=None)
    found = _merged(loaded, "lora-vit", None, backend)
    base = replace(found.base, notes=(*found.base.notes, *notes))
    return replace(found, base=base, asked=base)


def _merged(loaded: Loaded, kind: str, place: Path | None, backend: str) -> Source:
    """An adapter merged, and who computes the same unmerged: PEFT too, where it has a folder, ``place``."""
    quantized = loaded.base.quantization is not None
    tensors = loaded.model.merged(dequantize=quantized)
    base = replace(loaded.base, tensors=tensors, quantization=None, tokens=loaded.adapter.tokens)
    bare = None if quantized else loaded.base
    references: dict[str, Logits] = {f"{backend}, unmerged": loaded.model.logits}
    if bare is not None and place is not None and FORMATS[type(loaded.adapter.method)].from_peft is not None:
        references["peft"] = foreign("peft", place, bare)
    return Source(
        kind=kind,
        base=base,
        asked=base,
        classes=loaded.classes,
        references=references,
        adapter=described(loaded),
        bare=bare,
    )
