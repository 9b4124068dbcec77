"""The library: models and adapters in a notebook. ``torch_ref`` has the same names, so an import changes backend."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from convert.adapters.peft import Adapter, read_adapter, write_adapter
from convert.base import load_base
from convert.fit import must_hold
from mlx_peft.adaptation.adapter import adapter_shapes
from mlx_peft.backend import methods
from mlx_peft.backend import parameters as backend
from mlx_peft.backend.methods import merge, unmerge
from mlx_peft.backend.models.preprocess import preprocess
from mlx_peft.backend.models.vit import VisionTransformer
from mlx_peft.backend.parameters import fill, stored, to_timm
from mlx_peft.config.methods import MethodConfig
from mlx_peft.config.quantization import QAT, Quantization, described
from mlx_peft.config.schema import Model
from mlx_peft.core.errors import UserError
from mlx_peft.core.problems import validated
from mlx_peft.tasks.registry import classification

__all__ = [
    "add_adapter",
    "create_model",
    "load_adapter",
    "merge",
    "prepare",
    "remove_adapter",
    "save_adapter",
    "state_dict",
    "unmerge",
]


def create_model(
    name: str,
    weights: str = "timm",
    num_classes: int = 1000,
    image_size: int | None = None,
    seed: int = 0,
    quantize: Quantization | None = None,
) -> VisionTransformer:
    """A ViT by its timm name.

    Args:
        name: ``vit_small_patch16_224``, with or without a tag.
        weights: ``timm`` (the hub), ``none`` (random), or a file or folder.
        num_classes: width of the head; one of another size in the weights is replaced by a new one.
        image_size: pixels; the architecture's own where None, otherwise the position grid is resized.
        seed: of whatever is drawn.
        quantize: the linear layers of the blocks in so few bits; None: as the weights are.

    Warns:
        UserWarning: the patches do not cover an image of ``image_size``.

    Raises:
        UserError: the name is unknown, or the weights do not fit it or cannot be quantised so.
    """
    description = validated(Model, name, {"name": name, "weights": weights, "image_size": image_size})
    base = load_base(description, num_classes, seed, quantize)
    if (border := base.architecture.border_note) is not None and border in base.notes:
        warnings.warn(border, stacklevel=2)
    model = VisionTransformer(base.architecture, num_classes)
    fill(model, base)
    model.description, model.base = description, base.without_tensors()
    return model


def add_adapter(model: VisionTransformer, method: MethodConfig, seed: int = 0, qat: QAT | None = None) -> None:
    """Puts a method in place: its parameters and the head can be trained from here, and nothing else.

    Args:
        seed: of what the method draws.
        qat: the codes that the blocks' linear layers are trained through, and merged into; None: none.

    Raises:
        UserError: a target matches no layer, the method cannot be trained so, or the model has a method already.
    """
    method.check_new(model.architecture)
    _apply(model, method, seed, qat)


def _apply(model: VisionTransformer, method: MethodConfig, seed: int = 0, qat: QAT | None = None) -> None:
    methods.apply(model, method, seed, qat)
    model.qat, model.adapter_names = qat, tuple(stored(model))


def remove_adapter(model: VisionTransformer) -> None:
    """Takes a method out again: what it wrapped is as it was, what it added is gone, all can be trained.

    The head, and the parameters that a method of the model's own trains (full, BitFit, LayerNorm), keep their values.
    """
    methods.remove(model)


def prepare(model: VisionTransformer, images: np.ndarray) -> mx.array:
    """uint8 images ``(batch, h, w, 3)`` as the model's input, normalised as its weights want them."""
    return preprocess(mx.array(images), model.base.preprocessing, model.architecture.img_size, mx.float32)


def save_adapter(
    model: VisionTransformer, folder: str | Path, classes: Sequence[str] = (), multi_label: bool = False
) -> list[str]:
    """Writes what is trained in PEFT's format, the head and the class names with it. Returns notes for a person.

    Args:
        classes: names, in the order of the head's rows.
        multi_label: whether an image may have several of them.

    Raises:
        UserError: the model has no method, or it is merged.
    """
    if model.method is None:
        raise UserError("the model has no method: add one with add_adapter")
    if missing := [name for name in model.adapter_names if name not in stored(model)]:
        raise UserError(f"the method is merged into the model, {missing[0]} is gone: unmerge it first")
    tensors = {name: to_timm(p) for name, p in stored(model).items()}
    base = model.base
    return write_adapter(
        Path(folder),
        Adapter(
            method=model.method,
            tensors=tensors,
            classes=tuple(classes),
            model=model.description,
            architecture=base.architecture,
            preprocessing=base.preprocessing,
            base_sha256=base.sha256,
            source=base.source,
            quantize=base.quantization,
            qat=model.qat,
            task=classification(multi_label),
        ),
    )


def load_adapter(model: VisionTransformer, folder: str | Path) -> Adapter:
    """Puts a saved adapter into a model that has none yet, and returns what the folder says of it.

    Raises:
        UserError: the folder holds no adapter, one for another base, or not all of one; the model has no method then.
    """
    adapter = read_adapter(Path(folder))
    if adapter.base_sha256 not in (None, model.base.sha256):
        raise UserError(f"{folder} was trained on other weights than this model's ({adapter.source})")
    if adapter.base_sha256 is not None and adapter.quantize != model.quantization:
        raise UserError(
            f"{folder} was trained over a base with quantize: {described(adapter.quantize)}, and this model has "
            f"quantize: {described(model.quantization)}"
        )
    classes = model.head.weight.shape[0]
    wanted = adapter_shapes(adapter.method, model.architecture, classes, model.quantization, adapter.qat)
    must_hold({name: t.shape for name, t in adapter.tensors.items()}, wanted, f"{folder} does not fit the model")
    _apply(model, adapter.method, qat=adapter.qat)
    try:
        backend.load_adapter(model, adapter.tensors)
    except ValueError as error:
        remove_adapter(model)
        raise UserError(f"{folder} does not fit the model: {error}") from error
    return adapter


def state_dict(model: VisionTransformer) -> dict[str, np.ndarray]:
    """Every parameter by name, in timm's layout."""
    return {name: to_timm(p) for name, p in tree_flatten(model.parameters())}
