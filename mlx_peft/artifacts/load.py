"""Finished runs, adapters and models opened again."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from convert.adapters.fitting import must_have_head
from convert.adapters.peft import WEIGHTS, Adapter, read_adapter
from convert.base import Base, load_base
from convert.checkpoint import Checkpoint
from convert.files import without_digest
from convert.layouts.layout import Asked
from convert.layouts.naming import DECISIVE
from convert.open import open_path
from convert.problem import must_answer
from convert.timm import config as timm
from mlx_peft.adaptation.adapter import completed
from mlx_peft.artifacts.place import find_adapter, is_model, must_not_name
from mlx_peft.artifacts.recipe import Recipe
from mlx_peft.config.methods import Linear
from mlx_peft.config.quantization import Quantization
from mlx_peft.config.schema import Model, Precision
from mlx_peft.config.tokens import ReducerConfig, is_router
from mlx_peft.core.errors import UserError
from mlx_peft.core.problems import validated
from mlx_peft.protocols import model as protocols
from mlx_peft.tasks.task import Task
from mlx_peft.training.bases import adapter_base, base_model, opener, run_of
from mlx_peft.vit.architecture import Preprocessing

Tokens = ReducerConfig | Literal["own"] | None
"""Which reducer a model is opened with: its own, another, or none."""


@dataclass(frozen=True)
class Loaded:
    """A base with a trained adapter in it, ready for images."""

    model: protocols.Model
    adapter: Adapter
    base: Base
    recipe: Recipe
    notes: tuple[str, ...] = ()
    """Sentences for a person, such as that a file has no digest."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names; their numbers where the adapter was saved without."""
        return self.adapter.classes or tuple(map(str, range(self.adapter.num_classes)))

    @property
    def task(self) -> Task:
        """What the head answers."""
        return self.adapter.task

    @property
    def codes(self) -> Quantization | None:
        """How the merged model is quantised, unless it is told otherwise; None: it is a plain one."""
        qat = self.recipe.qat
        return self.base.quantization if qat is None else qat.format

    @property
    def preprocessing(self) -> Preprocessing:
        return self.base.preprocessing

    @property
    def image_size(self) -> int:
        return self.base.architecture.img_size

    def check_room(self, images: int) -> None:
        """Raises UserError where so many images at once cannot be answered in the memory that there is."""
        self.recipe.check_room(self.base, len(self.classes), images)


def load_any(
    path: Path,
    backend: Literal["mlx", "torch"] | None = None,
    *,
    name: str | None = None,
    precision: Precision | None = None,
    model: Model | None = None,
    weights: str | None = None,
    tokens: Tokens = "own",
) -> Loaded:
    """Opens a model's folder, as ``load_model``, or whatever ``load_run`` opens.

    Raises UserError as they do, and where weights are named for a model, or an adapter in it.
    """
    if not is_model(path):
        return load_run(path, backend, name=name, precision=precision, model=model, weights=weights, tokens=tokens)
    must_not_name(path, weights)
    if name is not None:
        raise UserError(f"{path} is a whole model, and has no adapter {name!r}: leave it out", arguments=("adapter",))
    return load_model(path, backend, tokens)


def load_run(
    path: Path,
    backend: Literal["mlx", "torch"] | None = None,
    *,
    name: str | None = None,
    precision: Precision | None = None,
    model: Model | None = None,
    weights: str | None = None,
    tokens: Tokens = "own",
) -> Loaded:
    """Opens a finished run, an adapter's folder, or the one called ``name`` of a folder that holds several of either.

    ``backend`` and ``precision`` are the run's own unless given; an adapter without a run has the defaults. ``model``
    is for an adapter that names none, as those that PEFT wrote; it may be left out where the folder of ``weights`` says
    what it is. ``weights`` says where its weights are now; otherwise they are found by their digest. ``tokens`` are
    those that it was trained with, unless another reducer is named, or None for none. Raises UserError where there is
    no adapter, and where its base is not found.
    """
    place = find_adapter(path, name)
    loaded = put_on(
        read_adapter(place), place, backend, precision=precision, model=model, weights=weights, tokens=tokens
    )
    return replace(loaded, notes=(*without_digest(place / WEIGHTS), *loaded.notes))


def put_on(
    adapter: Adapter,
    place: Path,
    backend: Literal["mlx", "torch"] | None = None,
    *,
    precision: Precision | None = None,
    model: Model | None = None,
    weights: str | None = None,
    tokens: Tokens = "own",
) -> Loaded:
    """An adapter on its base, ready for images. ``place`` is what it was read from; the rest is as in ``load_run``."""
    if adapter.model is None and model is None and run_of(place) is None:
        model = described_by(weights)
    recipe = recipe_of(adapter, place, model)
    recipe = replace(recipe, backend=backend or recipe.backend, precision=precision or recipe.precision)
    recipe = replace(recipe, tokens=chosen(recipe.tokens, tokens))
    return put_on_base(adapter, place, recipe, weights or (None if model is None else model.weights))


def put_on_base(adapter: Adapter, place: Path, recipe: Recipe, weights: str | None) -> Loaded:
    """An adapter in the model that a recipe says: one that was read, or made of one that lies in ``place``.

    Raises UserError where its base is not found, or it does not fit it.
    """
    named = base_model(recipe.model, adapter, place, weights)
    base = adapter_base(
        adapter, place, named, method=recipe.method, quantize=recipe.quantize, qat=recipe.qat, seed=recipe.seed,
        opener=opener(recipe.backend),
    )  # fmt: skip
    base = replace(base, tokens=recipe.tokens)
    recipe.check_room(base, adapter.num_classes, 1)
    built = recipe.build(base, adapter.num_classes)
    tensors = completed(adapter.method, adapter.tensors, built.adapter)
    if recipe.tokens is None or not recipe.tokens.trains:
        tensors = {name: tensor for name, tensor in tensors.items() if not is_router(name)}
    adapter = replace(adapter, tensors=tensors)
    try:
        built.load_adapter(adapter.tensors)
    except ValueError as error:
        raise UserError(f"{place} does not fit {base.name}: {error}") from error
    return Loaded(built, adapter, base, recipe, elsewhere(recipe.model, base))


def chosen(own: ReducerConfig | None, tokens: Tokens) -> ReducerConfig | None:
    """The reducer that a model is opened with, whose own is known.

    Raises UserError where another one would have to be trained first.
    """
    if tokens == "own":
        return own
    if tokens is not None and tokens.trains and (own is None or own.name != tokens.name):
        raise UserError(
            f"{tokens.name} has routers, which are trained with an adapter, and here are none: train with tokens.name="
            f"{tokens.name}",
            arguments=("tokens",),
        )
    return tokens


def described(loaded: Loaded) -> Adapter:
    """The adapter, and where it does not say which model it belongs to, the one that it was opened on."""
    adapter, base = loaded.adapter, loaded.base
    if adapter.model is not None:
        return adapter
    args = {**adapter.fields, **loaded.recipe.model.args}
    return replace(
        adapter,
        model=loaded.recipe.model.model_copy(update={"args": args}),
        architecture=base.architecture,
        preprocessing=base.preprocessing,
        base_sha256=base.sha256,
        source=base.source,
        quantize=base.quantization,
    )


def elsewhere(model: Model, base: Base) -> tuple[str, ...]:
    """A note where the weights were found in another place than the one that is written down."""
    if not model.is_local or os.path.abspath(os.path.expanduser(model.weights)) == os.path.abspath(base.source):
        return ()
    return (f"the weights are taken from {base.source}",)


def recipe_of(adapter: Adapter, place: Path, model: Model | None) -> Recipe:
    """What an adapter is put on, and how: its run's, or what it says itself, or ``model``, which may say where it lies.

    Raises UserError where neither names a model, or the two name different ones.
    """
    if (run := run_of(place)) is not None:
        recipe = replace(Recipe.of(run), method=adapter.method)  # whose ranks the run may have dealt out itself
    else:
        if (own := adapter.model or model) is None:
            raise UserError(
                f"{place} does not say which model it belongs to, as it was not written by mlx-peft: name it, and "
                "its weights where they are not timm's",
                arguments=("model", "weights"),
            )
        must_have_head(adapter.num_classes, place)
        recipe = Recipe(own, adapter.method, adapter.quantize, adapter.qat, tokens=adapter.tokens)
    if model is not None and adapter.model is not None:
        if model.name != adapter.model.name:
            raise UserError(
                f"{place} names its own model, {adapter.model.name}: leave the model out", arguments=("model",)
            )
        if model.image_size not in (None, adapter.model.image_size):
            raise UserError(
                f"{place} says itself at which image size it was trained: leave the image size out",
                arguments=("image_size",),
            )
    return recipe


def load_model(path: Path, backend: Literal["mlx", "torch"] | None = None, tokens: Tokens = "own") -> Loaded:
    """Opens a model's folder, timm's (plain or quantised) or transformers'.

    ``tokens`` are those that its folder names, unless another reducer is named, or None for none.

    Raises UserError where it is none, and where it has no classifier.
    """
    checkpoint = open_path(path, Asked())
    count = len((checkpoint.tensors or {}).get("head.weight", ()))
    if not count:
        notes = "".join(f"\n  note: {note}" for note in checkpoint.notes)
        raise UserError(f"{path}: the model has no classifier: train one, with model.weights={path}{notes}")
    must_answer(count, checkpoint.task, path)
    model = _model_of(checkpoint, path)
    recipe = Recipe(model, Linear(), backend=backend or "mlx")
    base = load_base(model.model_copy(update={"head": "keep"}), count, recipe.seed)
    base = replace(base, tokens=chosen(base.tokens, tokens))
    recipe = replace(recipe, tokens=base.tokens)
    recipe.check_room(base, count, 1)
    built = recipe.build(base, count)
    adapter = Adapter(
        method=recipe.method,
        tensors=built.adapter(),
        classes=checkpoint.classes,
        model=model,
        architecture=base.architecture,
        preprocessing=base.preprocessing,
        base_sha256=base.sha256,
        source=base.source,
        quantize=base.quantization,
        task=base.task,
        tokens=recipe.tokens,
    )
    weights = path / timm.WEIGHTS
    return Loaded(built, adapter, base, recipe, without_digest(weights) if weights.is_file() else ())


def described_by(weights: str | None) -> Model | None:
    """The model that a folder of weights says it is; None where it is no model's folder. Raises UserError."""
    path = Path(os.path.expanduser(weights or ""))
    return _model_of(open_path(path, Asked()), path) if weights and path.is_dir() and is_model(path) else None


def _model_of(checkpoint: Checkpoint, path: Path) -> Model:
    """A model in an experiment's words: of another layout than timm's, with what makes it another than its name."""
    found = checkpoint.architecture.model_dump()  # without what earlier versions had no word for, where it is as theirs
    args = {} if checkpoint.layout == "timm" else {field: found[field] for field in DECISIVE if field in found}
    return validated(Model, str(path), {"name": checkpoint.name, "weights": str(path), "args": args})
