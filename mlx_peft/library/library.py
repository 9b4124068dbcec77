"""Models and adapters in a notebook, for the network of any framework."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Generic

from convert.adapters.peft import Adapter, read_adapter, write_adapter
from convert.base import load_base
from convert.fit import must_hold
from mlx_peft.adaptation.adapter import adapter_shapes
from mlx_peft.config.methods import MethodConfig
from mlx_peft.config.quantization import QAT, Quantization, described
from mlx_peft.config.schema import Model
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.core.problems import validated
from mlx_peft.library.framework import AnyNetwork, Framework
from mlx_peft.tasks.registry import classification


class Library(Generic[AnyNetwork]):
    """The library of a backend: its methods are what a notebook calls."""

    def __init__(self, framework: Framework[AnyNetwork]) -> None:
        self.framework = framework

    def create_model(
        self,
        name: str,
        weights: str = "timm",
        num_classes: int = 1000,
        image_size: int | None = None,
        seed: int = 0,
        quantize: Quantization | None = None,
    ) -> AnyNetwork:
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
        model = self.framework.build(base.architecture, num_classes)
        self.framework.fill(model, base)
        model.description, model.base = description, base.without_tensors()
        return model

    def add_adapter(self, model: AnyNetwork, method: MethodConfig, seed: int = 0, qat: QAT | None = None) -> None:
        """Puts a method in place: its parameters and the head can be trained from here, and nothing else.

        Args:
            seed: of what the method draws.
            qat: the codes that the blocks' linear layers are trained through, and merged into; None: none.

        Raises:
            UserError: a target matches no layer, the method cannot be trained so, or the model has a method already.
        """
        method.check_new(model.architecture)
        self._apply(model, method, seed, qat)

    def _apply(self, model: AnyNetwork, method: MethodConfig, seed: int = 0, qat: QAT | None = None) -> None:
        self.framework.apply(model, method, seed, qat)
        model.qat, model.adapter_names = qat, tuple(self.framework.stored(model))

    def remove_adapter(self, model: AnyNetwork) -> None:
        """Takes a method out again: what it wrapped is as it was, what it added is gone, all can be trained.

        The head, and the parameters that a method of the model's own trains (full, BitFit, LayerNorm), keep their
        values.
        """
        self.framework.remove(model)

    def save_adapter(
        self, model: AnyNetwork, folder: str | Path, classes: Sequence[str] = (), multi_label: bool = False
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
        tensors = self.framework.stored(model)
        if missing := [name for name in model.adapter_names if name not in tensors]:
            raise UserError(f"the method is merged into the model, which no longer has {missing[0]}: unmerge it first")
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

    def load_adapter(self, model: AnyNetwork, folder: str | Path) -> Adapter:
        """Puts a saved adapter into a model that has none yet, and returns what the folder says of it.

        Raises:
            UserError: the folder holds no adapter, one for another base, or not all of one; the model has no method
                then.
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
        self._apply(model, adapter.method, qat=adapter.qat)
        try:
            self.framework.load_adapter(model, adapter.tensors)
        except ValueError as error:
            self.remove_adapter(model)
            raise UserError(f"{folder} does not fit the model: {error}") from error
        return adapter

    def state_dict(self, model: AnyNetwork) -> Tensors:
        """Every parameter by name, in timm's layout."""
        return self.framework.every(model)
