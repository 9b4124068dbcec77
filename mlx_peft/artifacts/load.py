"""Finished runs, adapters and models opened again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from convert.adapters.peft import WEIGHTS, Adapter, read_adapter
from convert.base import Base, architecture_of, load_base
from convert.files import without_digest
from convert.fit import must_hold
from convert.layouts.layout import Asked
from convert.layouts.naming import DECISIVE
from convert.open import open_path
from convert.problem import must_answer
from convert.timm import config as timm
from mlx_peft.adaptation.adapter import adapter_shapes
from mlx_peft.artifacts.recipe import Recipe
from mlx_peft.config.methods import Linear
from mlx_peft.config.quantization import Quantization
from mlx_peft.config.schema import Model, Precision
from mlx_peft.core.errors import UserError, suggest
from mlx_peft.core.problems import validated
from mlx_peft.protocols import model as protocols
from mlx_peft.protocols.loading import load_backend
from mlx_peft.tasks.task import Task
from mlx_peft.training.room import check_answering
from mlx_peft.training.run import RunFolder
from mlx_peft.training.stop import again
from mlx_peft.vit.architecture import Architecture, Preprocessing
from mlx_peft.vit.parameters import HEADS

ADAPTER_FILE = "adapter_config.json"
MODEL_FILE = "config.json"


@dataclass(frozen=True)
class Loaded:
    """A base with a trained adapter in it, ready for images."""

    model: protocols.Model
    adapter: Adapter
    base: Base
    recipe: Recipe
    notes: tuple[str, ...] = ()
    """For a person: that a file has no digest."""

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


def load_run(
    path: Path,
    backend: Literal["mlx", "torch"] | None = None,
    *,
    name: str | None = None,
    precision: Precision | None = None,
    model: Model | None = None,
) -> Loaded:
    """Opens a finished run, an adapter's folder, or the one called ``name`` of a folder that holds several of either.

    ``backend`` and ``precision`` are the run's own unless given; an adapter without a run has the defaults. ``model``
    is for an adapter that names none, as those that PEFT wrote; to one that does, it may say where the weights are now.
    Raises UserError where there is no adapter, and where the base it finds is not the one it was trained on.
    """
    place = find_adapter(path, name)
    adapter = read_adapter(place)
    recipe = _recipe(place, adapter, model)
    if backend is not None:
        recipe = replace(recipe, backend=backend)
    if precision is not None:
        recipe = replace(recipe, precision=precision)
    device = load_backend(recipe.backend).computing()
    if not recipe.model.is_local:  # before the weights are read, drawn or downloaded
        must_fit(adapter, recipe, architecture_of(recipe.model), adapter.quantize, place)
    base = load_base(recipe.model, adapter.num_classes, recipe.seed, recipe.quantize)
    must_answer(adapter.num_classes, adapter.task, place)
    notes = tuple(note for note in base.notes if note.partition(":")[0] not in HEADS)  # the head is the adapter's
    base = replace(base, task=adapter.task, notes=notes)
    if adapter.preprocessing is not None:
        base = replace(base, preprocessing=adapter.preprocessing)
    if adapter.base_sha256 is not None and adapter.base_sha256 != base.sha256:
        raise UserError(
            f"{place} is an adapter for another base: it was trained on weights {adapter.base_sha256[:12]} "
            f"({adapter.source}), and {base.source} has {base.sha256[:12]}"
        )
    must_fit(adapter, recipe, base.architecture, base.quantization, place)
    check_answering(base, adapter.num_classes, 1, recipe.precision, device)
    built = recipe.build(base, adapter.num_classes)
    try:
        built.load_adapter(adapter.tensors)
    except ValueError as error:
        raise UserError(f"{place} does not fit {base.name}: {error}") from error
    return Loaded(built, adapter, base, recipe, without_digest(place / WEIGHTS))


def _recipe(place: Path, adapter: Adapter, model: Model | None) -> Recipe:
    """What an adapter is put on, and how: its run's, or what it says itself, or ``model``, which may say where it lies.

    Raises UserError where neither names a model, or the two name different ones.
    """
    run = RunFolder(place.parent)
    if place == run.adapter and run.config.exists():
        recipe = Recipe.of(run.read_config())
    else:
        if (own := adapter.model or model) is None:
            raise UserError(
                f"{place} does not say which model it belongs to, as it was not written by mlx-peft: name it, and "
                "its weights where they are not timm's",
                arguments=("model", "weights"),
            )
        if not adapter.num_classes:
            raise UserError(f"{place} holds no classifier: with PEFT, name it in modules_to_save=['head']")
        if model is None and own.is_local:
            own = own.model_copy(update={"weights": str(_weights(own, place))})
        recipe = Recipe(own, adapter.method, adapter.quantize, adapter.qat)
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
        moved = recipe.model.model_copy(update={"weights": model.weights})  # the hash says if they are the same
        recipe = replace(recipe, model=moved)
    return recipe


def must_fit(
    adapter: Adapter,
    recipe: Recipe,
    architecture: Architecture,
    quantization: Quantization | None,
    place: Path,
) -> None:
    """Raises UserError where an adapter's tensors are not those of the recipe's method on such a model.

    What a file claims is compared with what it holds before anything of the claimed size is made.
    """
    wanted = adapter_shapes(recipe.method, architecture, adapter.num_classes, quantization, recipe.qat)
    found = {name: tensor.shape for name, tensor in adapter.tensors.items()}
    must_hold(found, wanted, f"{place} does not fit {recipe.model.name}")


def _weights(model: Model, place: Path) -> Path:
    """Where the local weights of an adapter are, which says the file's own name, or as earlier ones the whole path.

    They are looked for beside the adapter, beside its folder, and here; their digest says whether they are the ones.
    Raises UserError where they are in none of these.
    """
    named = Path(model.weights)
    beside = [folder / named.name for folder in (place, place.parent, Path())]
    places = [named, *beside] if named.is_absolute() else [*beside, named]
    if found := next((one for one in places if one.exists()), None):
        return found
    raise UserError(
        f"{place} was trained on {model.weights}, which is not there: put it beside the adapter, or say where those "
        f"weights are, of the model {model.name}",
        arguments=("model", "weights"),
    )


def find_adapter(path: Path, name: str | None) -> Path:
    """The adapter's folder that a path stands for. Raises UserError, with the names there are, where it is not one."""
    if not path.is_dir():
        raise UserError(f"{path} is not a folder: name a run or an adapter")
    if name is None and (place := adapter_in(path)):
        return place
    several = {entry.name: place for entry in sorted(path.iterdir()) if entry.is_dir() and (place := adapter_in(entry))}
    if name in several:
        return several[name]
    if RunFolder(path).config.exists():
        if name is not None and adapter_in(path):
            raise UserError(f"{path} is one run, not a folder of adapters: leave the name {name!r} out")
        raise UserError(f"{path} is a run that is not finished: continue it first", command=again(RunFolder(path)))
    if not several:
        raise UserError(f"{path} holds no adapter ({ADAPTER_FILE} is missing)")
    names = ", ".join(several)
    if name is None:
        raise UserError(f"{path} holds several adapters; choose one by its name: {names}", arguments=("adapter",))
    raise UserError(f"{path} has no adapter {name!r}; it has {names}{suggest(name, several)}")


def adapter_in(folder: Path) -> Path | None:
    """The folder itself where it is an adapter, its ``adapter/`` where it is a run with one."""
    places = (folder, RunFolder(folder).adapter)
    return next((place for place in places if (place / ADAPTER_FILE).exists()), None)


def is_model(path: Path) -> bool:
    """Whether a folder holds a whole model in timm's layout."""
    return (path / MODEL_FILE).is_file() and adapter_in(path) is None


def load_model(path: Path, backend: Literal["mlx", "torch"] | None = None) -> Loaded:
    """Opens a model's folder, timm's (plain or quantised) or transformers'.

    Raises UserError where it is none, and where it has no classifier.
    """
    checkpoint = open_path(path, Asked())
    count = len((checkpoint.tensors or {}).get("head.weight", ()))
    if not count:
        notes = "".join(f"\n  note: {note}" for note in checkpoint.notes)
        raise UserError(f"{path}: the model has no classifier: train one, with model.weights={path}{notes}")
    must_answer(count, checkpoint.task, path)
    found = checkpoint.architecture.model_dump()
    args = {} if checkpoint.layout == "timm" else {field: found[field] for field in DECISIVE}
    model = validated(Model, str(path), {"name": checkpoint.name, "weights": str(path), "args": args})
    recipe = Recipe(model, Linear(), backend=backend or "mlx")
    base = load_base(model, count, recipe.seed)
    check_answering(base, count, 1, recipe.precision, load_backend(recipe.backend).computing())
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
    )
    weights = path / timm.WEIGHTS
    return Loaded(built, adapter, base, recipe, without_digest(weights) if weights.is_file() else ())
