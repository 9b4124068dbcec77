"""Models and adapters in a notebook, for the network of any framework."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from convert.adapters.fitting import must_fit
from convert.adapters.peft import Adapter, read_adapter, write_adapter
from convert.base import Base, load_base
from mlx_peft.adaptation.adapter import completed
from mlx_peft.config.methods import Method, MethodConfig, called
from mlx_peft.config.methods.base import GIVEN
from mlx_peft.config.quantization import QAT, Quantization
from mlx_peft.config.schema import Model
from mlx_peft.config.tokens import ReducerConfig
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.core.paths import given_path
from mlx_peft.core.problems import validated
from mlx_peft.library import asked as asking
from mlx_peft.library.base import must_stand_on, place_in
from mlx_peft.library.by_hand import ByHand
from mlx_peft.library.framework import AnyNetwork
from mlx_peft.library.inference import Inference
from mlx_peft.library.named import Named
from mlx_peft.library.summary import Summary, summarised
from mlx_peft.library.theirs import method_of
from mlx_peft.tasks.registry import classification
from mlx_peft.vit.architecture import Preprocessing


class Library(ByHand[AnyNetwork], Inference[AnyNetwork]):
    """The library of a backend: its methods are what a notebook calls."""

    def create_model(
        self,
        name: str,
        weights: str = "timm",
        num_classes: int | None = None,
        image_size: int | None = None,
        seed: int = 0,
        quantize: Quantization | None = None,
        classes: Sequence[str] | None = None,
        multi_label: bool = False,
        args: Mapping[str, Any] | None = None,
        tokens: ReducerConfig | None = None,
        head: Literal["new", "keep"] | None = None,
    ) -> AnyNetwork:
        """A ViT by its timm name.

        Args:
            name: ``vit_small_patch16_224``, with or without a tag.
            weights: ``timm`` (the hub), ``none`` (random), or a file or folder.
            num_classes: width of the head; None: as many as there are names, and where there are none the weights' own
                head, or a new one of 1,000.
            image_size: pixels; the architecture's own where None, otherwise the position grid is resized.
            seed: of whatever is drawn.
            quantize: the linear layers of the blocks in so few bits; None: as the weights are.
            classes: their names, each another, in the order of the head's rows.
            multi_label: whether an image may have several of them.
            args: fields of the architecture to change, such as ``depth``.
            tokens: fewer of them, ``ToMe(r=13)``; None: all, or as the adapter was trained that is loaded.
            head: ``keep`` begins with the weights' own classifier, ``new`` with a new one; None: theirs where neither
                ``num_classes`` nor ``classes`` is given, or where its classes are known to be these, else a new one.

        Warns:
            UserWarning: the patches do not cover an image of ``image_size``, or a head of as many classes is replaced.

        Raises:
            UserError: the name is unknown, or the weights do not fit it or cannot be quantised so, or
                their head cannot be kept; ``classes`` are no names, or not ``num_classes``.
        """
        options = {
            "name": name,
            "weights": str(weights),
            "image_size": image_size,
            "args": dict(args or {}),
            "head": head,
        }
        names = () if classes is None else asking.class_names(classes)
        rows, asked = asking.rows(num_classes, names), validated(Model, str(name), options)
        base = load_base(asked, rows, seed, quantize, classes=names, task=classification(multi_label))
        if (border := base.architecture.border_note) is not None and border in base.notes:
            warnings.warn(border, stacklevel=2)
        if base.head.doubtful:
            doubt = f"{base.head.note}: head='keep' keeps it, head='new' says that a new one is meant"
            warnings.warn(doubt, stacklevel=2)
        model = self.framework.build(base.architecture, len(base.tensors["head.weight"]))
        self.framework.fill(model, base)
        model.reduce(tokens, seed)
        self.adopt(model, asked.model_copy(update={"head": None}), base, names)  # an adapter has a head of its own
        return model

    def adopt(
        self, model: AnyNetwork, description: Model, base: Base, classes: Sequence[str] = (), qat: QAT | None = None
    ) -> None:
        """Keeps with a model what is known of it, whoever has built it, with a method in it or without."""
        model.description, model.base, model.classes = description, base.without_tensors(), tuple(classes)
        model.qat, model.adapter_names = qat, () if model.method is None else tuple(self.framework.stored(model))

    def add_adapter(
        self,
        model: AnyNetwork,
        method: Any = "lora",
        seed: int = 0,
        qat: QAT | None = None,
        **options: Any,
    ) -> None:
        """Puts a method in place: its parameters and the head can be trained from here, and nothing else.

        Args:
            method: ``LoRA(rank=8)``; or its name, ``"lora"``, with its options behind: ``rank=8``; or PEFT's own
                ``LoraConfig(r=8)``, which means what it means there.
            seed: of what the method draws.
            qat: the codes that the blocks' linear layers are trained through, and merged into; None: none.

        Raises:
            UserError: there is no such method or option, a target matches no layer, the method cannot be trained so, or
                the model has a method already.
        """
        asking.must_be_model(model)
        if isinstance(method, str):
            method = called(method, options)
        elif options:
            raise UserError(f"{method!r} has its options already, and {', '.join(options)} was given too")
        method = method_of(method)
        if method.start is not None:
            raise UserError(f"method.from is for runs: to go on from {method.start}, load it into the model")
        if method.given is not None:
            raise UserError(
                f"{method!r} starts from {GIVEN[method.given]}, which a model does not hold: train it by a run, or "
                "choose another init"
            )
        method.check_new(model.architecture)
        self._apply(model, method, seed, qat)

    def _apply(self, model: AnyNetwork, method: MethodConfig, seed: int = 0, qat: QAT | None = None) -> None:
        self.framework.apply(model, method, seed, qat)
        model.qat, model.adapter_names = qat, tuple(self.framework.stored(model))

    def remove_adapter(self, model: AnyNetwork) -> None:
        """Takes a method out again: what it wrapped is as it was, what it added is gone, all can be trained.

        The head, and the parameters that a method of the model's own trains (full, BitFit, LayerNorm), keep their
        values; so do codes that an adapter brought with it.
        """
        asking.must_be_model(model)
        whole = model.method is None or set(model.adapter_names) <= self.framework.stored(model).keys()
        changed = model.method is not None and (model.method.selected(model.architecture) or model.method.own_codes)
        self.framework.remove(model)
        model.qat, model.adapter_names = None, ()
        if changed or not whole:  # trained itself, exchanged, or merged into
            model.base = replace(model.base, sha256="")

    def merge(self, model: AnyNetwork, dequantize: bool = False) -> Named[Any]:
        """Folds what the method put into the model into plain layers, in place; ``unmerge`` takes what this returns.

        What was trained through codes is in codes after that. With ``dequantize`` nothing is: a quantised base becomes
        a plain one first, and codes that were trained towards become the plain weights that they stand for.

        Raises:
            UserError: the mathematics does not allow it; nothing is changed then.
        """
        asking.must_be_model(model)
        replaced = self.framework.merge(model, dequantize)
        model.standing.merged = model.standing.merged or bool(replaced)
        return Named(replaced, "layers that unmerge puts back")

    def unmerge(self, model: AnyNetwork, replaced: dict[str, Any]) -> None:
        """Puts back what ``merge`` replaced, bit for bit."""
        asking.must_be_model(model)
        self.framework.unmerge(model, replaced)
        model.standing.merged = False

    def adapter(self, model: AnyNetwork) -> tuple[Method, Tensors]:
        """The model's method, and what it trains and keeps, by name.

        Raises:
            UserError: the model has no method, or it is merged.
        """
        if model.method is None:
            raise UserError("the model has no method: add one with add_adapter")
        tensors = self.framework.stored(model)
        if missing := [name for name in model.adapter_names if name not in tensors]:
            raise UserError(f"the method is merged into the model, which no longer has {missing[0]}: unmerge it first")
        return model.method, tensors

    def save_adapter(
        self,
        model: AnyNetwork,
        folder: str | Path,
        classes: Sequence[str] | None = None,
        multi_label: bool | None = None,
    ) -> list[str]:
        """Writes what is trained in PEFT's format, the head and the class names with it. Returns notes for a person.

        Args:
            classes: names, in the order of the head's rows; None: the model's own.
            multi_label: whether an image may have several of them; None: as the model has it.

        Raises:
            UserError: the model has no method, or it is merged, or its other weights are not as they were loaded;
                ``classes`` are no names.
        """
        asking.must_be_model(model)
        place = given_path(folder, "the adapter's folder")
        names = model.classes if classes is None else asking.class_names(classes)
        (method, tensors), base = self.adapter(model), model.base
        if not base.sha256:
            raise UserError(
                "an earlier method changed the weights below the adapter, so that the adapter is not all that was "
                "trained: put it on a model as it was created"
            )
        return write_adapter(
            place,
            Adapter(
                method=method,
                tensors=tensors,
                classes=names,
                model=model.description,
                architecture=base.architecture,
                preprocessing=base.preprocessing,
                base_sha256=base.sha256,
                source=base.source,
                quantize=base.quantization,
                qat=model.qat,
                tokens=model.tokens,
                task=base.task if multi_label is None else classification(multi_label),
            ),
        )

    def load_adapter(self, model: AnyNetwork, folder: str | Path) -> Adapter:
        """Puts a saved adapter, or that of a run, into a model that has none yet; returns what its folder says of it.

        Raises:
            UserError: the folder holds no adapter, one for another base, or not all of one; the model has no method
                then.
        """
        asking.must_be_model(model)
        adapter = read_adapter(place_in(given_path(folder, "the adapter's folder")))
        must_stand_on(adapter, model, folder)
        classes = model.head.weight.shape[0]
        tokens, before = adapter.tokens or model.tokens, model.tokens
        must_fit(
            adapter.tensors, f"{folder} does not fit the model", adapter.method, model.architecture, classes,
            model.quantization, adapter.qat, tokens,
        )  # fmt: skip
        if adapter.tokens is not None:
            model.reduce(tokens)
        self._apply(model, adapter.method, qat=adapter.qat)
        tensors = completed(adapter.method, adapter.tensors, lambda: self.framework.stored(model))
        try:
            self.take(model, tensors, adapter.classes, adapter.preprocessing)
        except ValueError as error:
            self.remove_adapter(model)
            model.reduce(before)
            raise UserError(f"{folder} does not fit the model: {error}") from error
        model.base = replace(model.base, task=adapter.task)
        return adapter

    def take(
        self, model: AnyNetwork, tensors: Tensors, classes: Sequence[str], preprocessing: Preprocessing | None
    ) -> None:
        """Gives a model's adapter other values, and takes over what else was learnt of images and classes.

        Raises:
            ValueError: names or shapes differ.
        """
        self.framework.load_adapter(model, tensors)
        model.classes = tuple(classes) or model.classes
        model.base = replace(model.base, preprocessing=preprocessing or model.base.preprocessing)

    def state_dict(self, model: AnyNetwork) -> Tensors:
        """Every parameter by name, in timm's layout."""
        asking.must_be_model(model)
        return Named(self.framework.every(model), "tensors")

    def summary(self, model: AnyNetwork) -> Summary:
        """How many of a model's numbers are trained, and where they are."""
        asking.must_be_model(model)
        method = None if model.method is None else model.method.name
        return summarised(method, self.framework.sizes(model), self.framework.count(model))
