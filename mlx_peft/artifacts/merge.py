"""Trained models as files: a run merged into its base, plain or in few bits, and what that changed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from convert.base import Base
from convert.timm.config import timm_arguments
from convert.timm.write import write_model
from mlx_peft.artifacts.ahead import must_be_new, must_have_room, must_merge
from mlx_peft.artifacts.load import Loaded, Tokens, load_model, load_run
from mlx_peft.artifacts.place import find_adapter, is_model, must_not_name
from mlx_peft.codes import affine
from mlx_peft.config.quantization import Quantization, described
from mlx_peft.config.schema import Model
from mlx_peft.config.tokens import ReducerConfig
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import Command, UserError
from mlx_peft.tasks.logits import finite

PROBES = 8
"""The change of the logits is measured on so many images of uniform noise: the model's own need not be at hand."""


@dataclass(frozen=True)
class Written:
    """What became of a model that was written.

    Attributes:
        quantization: of the model; None where it is a plain one.
        sqnr: of each layer that was quantised, by path, in dB: the weight's power over its error's.
        logits: ||a - b|| / ||b|| on noise, b being the logits before quantising; None where nothing was quantised.
        in_timm: whether timm opens it.
        tokens: how it has fewer of them, which timm passes over; None: all of them.
    """

    quantization: Quantization | None
    sqnr: dict[str, float]
    logits: float | None
    in_timm: bool = False
    tokens: ReducerConfig | None = None


def requantized(loaded: Loaded, out: Path, quantization: Quantization) -> Written:
    """Merges into plain weights, quantises these as the backend does, and writes them to the folder ``out``.

    Layers of a base that is quantised so already keep its codes where the method did not change them, since to quantise
    what codes stand for does not give the same codes again.

    Raises UserError, with nothing written, where a logit before or after is not finite.
    """
    base, recipe, num_classes = loaded.base, loaded.recipe, len(loaded.classes)
    codes = recipe.build_base(base, num_classes).merged() if base.quantization == quantization else {}
    exact = loaded.model.merged(dequantize=True)
    fewer = recipe.build_base(replace(base, tensors=exact, quantization=quantization), num_classes)
    tensors = fewer.merged() | unchanged(codes, exact, base, quantization)
    fewer = recipe.build_base(replace(base, tensors=tensors, quantization=quantization), num_classes)
    rounded = affine.without_codes(tensors, base.architecture, quantization)
    names = [f"{site.path}.weight" for site in quantization.sites(base.architecture)]
    size = base.architecture.img_size
    images = np.random.default_rng(0).integers(0, 256, (PROBES, size, size, 3), dtype=np.uint8)
    before, after = finite(loaded.model.logits(images)), finite(fewer.logits(images), "the quantised model")
    write_model(
        out, base=base, tensors=tensors, classes=loaded.adapter.classes, quantization=quantization, exactly=True
    )
    return Written(
        quantization,
        {name.removesuffix(".weight"): affine.sqnr(exact[name], rounded[name]) for name in names},
        float(np.linalg.norm(after - before) / np.linalg.norm(before)),
        tokens=base.tokens,
    )


def unchanged(codes: Tensors, exact: Tensors, base: Base, quantization: Quantization) -> Tensors:
    """The words, scales and biases of the layers whose weights are those that the codes stand for."""
    kept: Tensors = {}
    for site in quantization.sites(base.architecture) if codes else ():
        words, scales, biases = (f"{site.path}.{name}" for name in ("weight", "scales", "biases"))
        weight = affine.dequantized(codes[words], codes[scales], codes[biases], quantization.bits)
        if np.array_equal(weight, exact[words]):
            kept |= {name: codes[name] for name in (words, scales, biases)}
    return kept


def merge_run(
    path: Path,
    out: Path,
    backend: Literal["mlx", "torch"] | None = None,
    *,
    name: str | None = None,
    model: Model | None = None,
    weights: str | None = None,
    dequantize: bool = False,
    requantize: bool = False,
    tokens: Tokens = "own",
) -> Written:
    """Writes the model of a run or adapter, merged into its base in float32, as a folder.

    timm opens it where it has words for the model and nothing is quantised. What was trained through codes is written
    in these. A quantised base stays quantised where the method adds nothing to its codes. Otherwise it must be said
    what the sum becomes: with ``dequantize`` a plain model, which is exact, with ``requantize`` one that is quantised
    again as its base was, which moves the logits. ``weights`` says where those of the base are now; ``tokens`` as in
    ``load_run``.

    Raises UserError where the method cannot be merged, and where ``out`` is there and not empty.
    """
    must_be_new(out)
    if dequantize and requantize:
        raise UserError(
            "dequantize and requantize exclude each other: choose one", arguments=("dequantize", "requantize")
        )
    must_merge(find_adapter(path, name))
    loaded = load_run(path, backend, name=name, precision="float32", model=model, weights=weights, tokens=tokens)
    must_have_room(out, loaded.base.tensors)
    if loaded.codes is None and (dequantize or requantize):
        which = "dequantize" if dequantize else "requantize"
        raise UserError(f"the base of {path} is not quantised: leave {which} out", arguments=(which,))
    if requantize:
        if loaded.base.quantization is None:
            raise UserError(
                f"{path} was trained through the codes that it is merged into: leave requantize out",
                arguments=("requantize",),
            )
        return requantized(loaded, out, loaded.base.quantization)
    tensors = loaded.model.merged(dequantize)
    quantization = None if dequantize else loaded.codes
    write_model(out, base=loaded.base, tensors=tensors, classes=loaded.classes, quantization=quantization, exactly=True)
    return Written(quantization, {}, None, in_timm(loaded.base), loaded.base.tokens)


def in_timm(base: Base) -> bool:
    """Whether timm has words for the model, and so opens its plain weights."""
    try:
        timm_arguments(base.architecture, base.name.partition(".")[0])
    except UserError:
        return False
    return True


def quantize_model(
    path: Path,
    out: Path,
    quantization: Quantization,
    backend: Literal["mlx", "torch"] | None = None,
    *,
    name: str | None = None,
    model: Model | None = None,
    weights: str | None = None,
) -> Written:
    """Quantises a model's folder, or a run or adapter that is merged first, and writes it as a folder.

    Raises UserError where there is no such model, it cannot be merged or is quantised already, the group does not
    divide a layer's width, and where ``out`` is there and not empty.
    """
    must_be_new(out)
    if is_model(path):
        must_not_name(path, weights)
        loaded = load_model(path, backend)
    else:
        must_merge(find_adapter(path, name))
        loaded = load_run(path, backend, name=name, precision="float32", model=model, weights=weights)
    if loaded.base.quantization is not None:
        raise UserError(
            f"{path} is quantised already, to {described(loaded.base.quantization)}: merge it into a plain model, or "
            "quantise it again to its own bits",
            command=Command("see", ("merge", str(path), "OUT"), {"dequantize": True}),
        )
    if loaded.codes is not None:
        raise UserError(
            f"{path} was trained through codes of {described(loaded.codes)}: merging writes them as they are; for "
            "others, merge it into a plain model and quantise that",
            command=Command("see", ("merge", str(path), "OUT"), {"dequantize": True}),
        )
    quantization.sites(loaded.base.architecture)
    return requantized(loaded, out, quantization)
