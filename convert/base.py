"""The model that an experiment starts from: its weights, found or drawn, fitted to what is asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from convert.checkpoint import Checkpoint
from convert.files import exact
from convert.fit import fit
from convert.head import OWN, Head, Wanted, decide
from convert.known import remember
from convert.weights import Opener, open_weights
from mlx_peft.adaptation.footprint import weights
from mlx_peft.codes import affine
from mlx_peft.config.quantization import Quantization, described
from mlx_peft.config.schema import Model
from mlx_peft.config.tokens import ReducerConfig
from mlx_peft.core import memory
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.tasks.registry import USUAL
from mlx_peft.tasks.task import Task
from mlx_peft.vit.architecture import Architecture, Preprocessing
from mlx_peft.vit.initial import initial_state
from mlx_peft.vit.parameters import is_head
from mlx_peft.vit.registry import altered, find


@dataclass(frozen=True)
class Base:
    """A complete model before any method is applied to it.

    Attributes:
        name: timm's, with a tag where that is known of the weights.
        source: where the weights came from: a hub id, a path, ``package:NAME`` or ``random``.
        tensors: timm's state dictionary, float32 and C-contiguous, with head and position grid as asked for; of weights
            that were found quantised, the layers' uint32 words, scales and biases.
        sha256: of the weights as found, heads excluded and nothing resized: what an adapter must meet again; empty
            where none will.
        quantization: how the linear layers of the blocks are, or are to be, quantised; None: not at all.
        notes: what was replaced, resized or left out, for a person.
        task: what the head answers.
        head: which head it has: the weights' own, or a new one, and why.
        tokens: how the weights are used with fewer of them, as their folder says; None where it does not.
    """

    name: str
    source: str
    architecture: Architecture
    preprocessing: Preprocessing
    tensors: Tensors = field(repr=False)
    sha256: str
    notes: tuple[str, ...]
    quantization: Quantization | None = None
    task: Task = USUAL
    head: Head = OWN
    tokens: ReducerConfig | None = None

    @property
    def packed(self) -> bool:
        """Whether the tensors are quantised already."""
        return any(tensor.dtype == np.uint32 for tensor in self.tensors.values())

    def without_tensors(self) -> Base:
        """What it says without what it holds, for whoever keeps it once the weights are in a model."""
        return replace(self, tensors={})


@dataclass(frozen=True)
class Found:
    """What is known of a model before its weights are fitted: ``sha256`` is None before they are read or drawn."""

    source: str
    architecture: Architecture
    quantization: Quantization | None
    sha256: str | None


def load_base(
    model: Model,
    num_classes: int | None,
    seed: int,
    quantize: Quantization | None = None,
    must_meet: Callable[[Found], None] | None = None,
    *,
    classes: Sequence[str] = (),
    task: Task | None = None,
    opener: Opener = open_weights,
) -> Base:
    """Finds a model's weights and fits them.

    Args:
        model: the experiment's ``model``.
        num_classes: width of the head; None: the weights' own, which is kept unless ``model.head`` is ``new``.
        seed: of whatever the weights do not have.
        quantize: the experiment's ``quantize``.
        must_meet: raises UserError where what is found is not what it has to be; None where anything will do. It is
            asked before weights are downloaded or drawn, and again when their digest is known, before they are fitted.
        classes: the names of what the head is to answer, which decide whether the weights' is kept; none: unknown.
        task: what it is to answer; None: what the weights' does.
        opener: what finds the weights.

    Raises:
        UserError: where the model or its weights are unknown, unreadable, or do not fit, or cannot be quantised so, and
            where their head cannot be kept.
    """
    if must_meet is not None and not model.is_local and (model.weights == "timm" or not model.is_fetched):
        must_meet(Found(model.weights, architecture_of(model), quantize, None))
    checkpoint = opener(model)
    architecture = _wanted(model, checkpoint.architecture)
    quantization = _agreed(quantize, checkpoint)
    if quantization is not None:
        quantization.sites(architecture)
    preprocessing = _normalisation(checkpoint, model)
    notes = [*checkpoint.notes, *_border(architecture, checkpoint.architecture)]
    head, num_classes = decide(model, Wanted(num_classes, tuple(classes), task), checkpoint, architecture)
    tensors = checkpoint.tensors
    if tensors is None:
        tensors = _drawn(model.name, architecture, num_classes, seed)
    digest = _known(model, checkpoint.sha256 or digest_of(tensors))
    if must_meet is not None:
        must_meet(Found(checkpoint.source, architecture, quantization, digest))
    if checkpoint.tensors is not None:
        tensors, fitted = _fitted(checkpoint, model, architecture, num_classes, head, seed)
        notes += [*fitted, head.note]
    return Base(
        name=checkpoint.name,
        source=checkpoint.source,
        architecture=architecture,
        preprocessing=preprocessing,
        tensors={name: exact(tensor) for name, tensor in tensors.items()},
        sha256=digest,
        notes=tuple(notes),
        quantization=quantization,
        task=task or checkpoint.task,
        head=head,
        tokens=checkpoint.tokens,
    )


def _known(model: Model, digest: str) -> str:
    """The digest itself. Where the weights are a file or a folder, it is noted that they have it."""
    if model.is_local:
        remember(Path(os.path.expanduser(model.weights)), digest)
    return digest


def whole(checkpoint: Checkpoint, image_size: int | None = None, args: Mapping[str, Any] | None = None) -> Base:
    """A checkpoint as a base with its own head: none where it has none. Its quantised weights are made plain.

    Args:
        image_size: pixels, for which the position grid is resized; its own where None.
        args: fields of the architecture to change.

    Raises:
        UserError: where the tensors do not fit the architecture, or no normalisation is known.
    """
    if checkpoint.preprocessing is None:
        raise UserError(
            f"{checkpoint.source}: timm has published no weights for {checkpoint.name!r}, so how its images are to be "
            "normalised is unknown: name a model with a tag, or a folder whose config.json says so"
        )
    changes = {**(args or {}), **({} if image_size is None else {"img_size": image_size})}
    architecture = altered(checkpoint.architecture, changes, "args")
    found = checkpoint.tensors or {}
    if checkpoint.quantization is not None:
        found = affine.without_codes(found, checkpoint.architecture, checkpoint.quantization)
    classes = found.get("head.weight", np.empty(0)).shape[0]
    tensors, notes = fit(
        found,
        architecture,
        classes,
        head=OWN if classes else Head(kept=False, reason="none"),
        seed=0,
        resampling=checkpoint.resampling,
        asked=changes.keys(),
        what=f"the weights of {checkpoint.source} and the model {checkpoint.name}",
    )
    return Base(
        name=checkpoint.name,
        source=checkpoint.source,
        architecture=architecture,
        preprocessing=checkpoint.preprocessing,
        tensors={name: exact(tensor) for name, tensor in tensors.items() if classes or not is_head(name)},
        sha256="",
        notes=(
            *checkpoint.notes,
            *_border(architecture, checkpoint.architecture),
            *notes,
        ),
        task=checkpoint.task,
        tokens=checkpoint.tokens,
    )


def _drawn(name: str, architecture: Architecture, num_classes: int, seed: int) -> Tensors:
    """All weights, from a seed. Raises UserError where there is no memory for them."""
    memory.require({"weights": weights(architecture, num_classes)}, f"the model {name} ({architecture.dimensions})")
    return initial_state(architecture, num_classes, seed)


def _fitted(
    checkpoint: Checkpoint, model: Model, architecture: Architecture, num_classes: int, head: Head, seed: int
) -> tuple[Tensors, list[str]]:
    """A checkpoint's tensors made the model's, and what was changed. Raises UserError where they do not fit."""
    return fit(
        checkpoint.tensors or {},
        architecture,
        num_classes,
        head=head,
        seed=seed,
        resampling=checkpoint.resampling,
        asked={*model.args, *(() if model.image_size is None else ("img_size",))},
        quantization=checkpoint.quantization,
        what=f"the weights of {checkpoint.source} and the model {model.name}",
    )


def _border(wanted: Architecture, found: Architecture) -> list[str]:
    """The note about pixels past the last patch, where that was asked for: what weights were trained so needs none."""
    sizes = [(architecture.img_size, architecture.patch_size) for architecture in (wanted, found)]
    return [] if sizes[0] == sizes[1] or wanted.border_note is None else [wanted.border_note]


def architecture_of(model: Model, opener: Opener = open_weights) -> Architecture:
    """What the model will be, as far as it is known without a download.

    Raises:
        UserError: as ``load_base``.
    """
    known = find(model.name).architecture if model.is_fetched else opener(model).architecture
    return _wanted(model, known)


def _wanted(model: Model, architecture: Architecture) -> Architecture:
    """The weights' own architecture with what the experiment changes in it."""
    if "img_size" in model.args:
        raise UserError("model.args.img_size: write model.image_size instead")
    size = {} if model.image_size is None else {"img_size": model.image_size}
    return altered(architecture, {**model.args, **size}, "model.args")


def _normalisation(checkpoint: Checkpoint, model: Model) -> Preprocessing:
    """How images are prepared for the weights. Raises UserError where nobody has said it."""
    if checkpoint.preprocessing is None:
        raise UserError(
            f"model.name: timm has published no weights for {model.name!r}, so how its images are to be normalised is "
            "unknown; name a folder in model.weights whose config.json says so (pretrained_cfg: mean, std, "
            "interpolation, crop_pct)"
        )
    return checkpoint.preprocessing


def _agreed(quantize: Quantization | None, checkpoint: Checkpoint) -> Quantization | None:
    """What the experiment asks for, or what the weights are: they cannot be quantised a second time."""
    found = checkpoint.quantization
    if quantize is not None and found is not None and quantize != found:
        raise UserError(
            f"quantize: {checkpoint.source} is quantised already, to {described(found)}: leave quantize out, or name "
            "weights that are not"
        )
    return found or quantize


def digest_of(tensors: Tensors) -> str:
    """What tells weights from all others, as they were found: heads are left out, and nothing is resized yet."""
    digest = hashlib.sha256()
    for name in sorted(name for name in tensors if not is_head(name)):
        tensor = exact(tensors[name])
        digest.update(f"{name} {tensor.shape}\n".encode())
        digest.update(tensor.data)
    return digest.hexdigest()
