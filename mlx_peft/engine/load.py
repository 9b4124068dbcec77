"""Finished runs and adapters opened again: to evaluate, to predict, to merge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from convert.adapters.peft import Adapter, read_adapter
from convert.base import Base, load_base
from convert.layouts.layout import Asked
from convert.layouts.naming import DECISIVE
from convert.open import open_path
from convert.timm import write_model
from mlx_peft.config.architecture import Preprocessing
from mlx_peft.config.errors import UserError, suggest
from mlx_peft.config.files import load
from mlx_peft.config.methods import Linear
from mlx_peft.config.quantization import Quantization, described
from mlx_peft.config.schema import Data, Experiment, Model, Precision
from mlx_peft.data import Dataset, Split, cached, eval_batches, eval_image, open_dataset
from mlx_peft.engine.backend import Learner, load_backend
from mlx_peft.engine.evaluate import answers, examined
from mlx_peft.engine.metrics import Evaluation
from mlx_peft.engine.progress import Metrics
from mlx_peft.engine.quantize import Written, write_quantized
from mlx_peft.engine.run import RunFolder

ADAPTER_FILE = "adapter_config.json"
MODEL_FILE = "config.json"


@dataclass(frozen=True)
class Loaded:
    """A base with a trained adapter in it, ready for images."""

    learner: Learner
    adapter: Adapter
    base: Base
    experiment: Experiment
    """The run's own; for an adapter without its run, one made of what the adapter says, with default data."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names; their numbers where the adapter was saved without."""
        return self.adapter.classes or tuple(map(str, range(self.adapter.num_classes)))

    @property
    def codes(self) -> Quantization | None:
        """How the merged model is quantised, unless it is told otherwise; None: it is a plain one."""
        qat = self.experiment.qat
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
    run = RunFolder(place.parent)
    if place == run.adapter and run.config.exists():
        experiment = load(run.config)
    else:
        if (own := adapter.model or model) is None:
            raise UserError(
                f"{place} does not say which model it belongs to, as it was not written by mlx-peft: name it with "
                "--model NAME (and --weights, where they are not timm's)"
            )
        if not adapter.num_classes:
            raise UserError(f"{place} holds no classifier: with PEFT, name it in modules_to_save=['head']")
        if model is None and own.is_local and not Path(own.weights).exists():
            raise UserError(
                f"{place} was trained on {own.weights}, which is not there: say where those weights are, with "
                f"--model {own.name} --weights FILE"
            )
        experiment = Experiment(
            model=own, method=adapter.method, quantize=adapter.quantize, qat=adapter.qat, data=Data(name="none")
        )
    if model is not None and adapter.model is not None:
        if model.name != adapter.model.name:
            raise UserError(f"{place} names its own model, {adapter.model.name}: leave --model out")
        moved = experiment.model.model_copy(update={"weights": model.weights})  # the hash says if they are the same
        experiment = experiment.model_copy(update={"model": moved})
    if backend is not None:
        experiment = experiment.model_copy(update={"backend": backend})
    if precision is not None:
        train = experiment.train.model_copy(update={"precision": precision})
        experiment = experiment.model_copy(update={"train": train})
    module = load_backend(experiment.backend)
    base = load_base(experiment.model, adapter.num_classes, experiment.seed, experiment.quantize)
    if adapter.preprocessing is not None:
        base = replace(base, preprocessing=adapter.preprocessing)
    if adapter.base_sha256 is not None and adapter.base_sha256 != base.sha256:
        raise UserError(
            f"{place} is an adapter for another base: it was trained on weights {adapter.base_sha256[:12]} "
            f"({adapter.source}), and {base.source} has {base.sha256[:12]}"
        )
    learner = module.build(experiment, adapter.num_classes, base)
    try:
        learner.load_adapter(adapter.tensors)
    except ValueError as error:
        raise UserError(f"{place} does not fit {base.name}: {error}") from error
    return Loaded(learner, adapter, base, experiment)


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
        raise UserError(
            f"{path} is one run, not a folder of adapters: leave the name {name!r} out"
            if name is not None and adapter_in(path)
            else f"{path} is a run that is not finished: continue it with --resume"
        )
    if not several:
        raise UserError(f"{path} holds no adapter ({ADAPTER_FILE} is missing)")
    names = ", ".join(several)
    if name is None:
        raise UserError(f"{path} holds several adapters; choose one by its name: {names}")
    raise UserError(f"{path} has no adapter {name!r}; it has {names}{suggest(name, several)}")


def adapter_in(folder: Path) -> Path | None:
    """The folder itself where it is an adapter, its ``adapter/`` where it is a run with one."""
    places = (folder, RunFolder(folder).adapter)
    return next((place for place in places if (place / ADAPTER_FILE).exists()), None)


def evaluate_run(
    path: Path,
    split: Literal["val", "test"] = "test",
    backend: Literal["mlx", "torch"] | None = None,
    *,
    model: Path | None = None,
) -> Metrics:
    """The metrics of a finished run on one of its splits; of a model's folder in its place, where one is named.

    Raises UserError where the data set has no such split, or where it is not the split that the run had: images that
    were trained on might be in it.
    """
    return evaluate_splits(path, [split], backend, model=model)[0][split]


def evaluate_splits(
    path: Path,
    splits: Sequence[Literal["val", "test"]],
    backend: Literal["mlx", "torch"] | None = None,
    *,
    model: Path | None = None,
) -> tuple[dict[str, Metrics], Learner]:
    """As ``evaluate_run``, on several splits; and what was evaluated."""
    found, loaded = examine_splits(path, splits, backend, model=model)
    return {split: evaluation.metrics for split, evaluation in found.items()}, loaded.learner


def examine_splits(
    path: Path,
    splits: Sequence[Literal["val", "test"]],
    backend: Literal["mlx", "torch"] | None = None,
    *,
    model: Path | None = None,
) -> tuple[dict[str, Evaluation], Loaded]:
    """As ``evaluate_splits``, with what the metrics are made of."""
    run, experiment, dataset = run_data(path)
    wanted = {split: own_split(run, dataset, split) for split in splits}
    loaded = load_run(path, backend) if model is None else load_model(model, backend or experiment.backend)
    if dataset.classes != loaded.classes:
        raise UserError(f"the classes of {dataset.name} are not those that {model or 'the run'} was trained on")
    found: dict[str, Evaluation] = {}
    for split, images in wanted.items():
        batches = eval_batches(images, experiment.data, loaded.preprocessing, loaded.image_size)
        found[split] = examined(answers(loaded.learner, batches), len(loaded.classes))
    return found, loaded


def run_data(path: Path) -> tuple[RunFolder, Experiment, Dataset]:
    """A finished run's configuration, and its data set opened again. Raises UserError where it is no such run."""
    run = RunFolder(path)
    if not run.config.exists():
        raise UserError(f"{path} is not a run (config.yaml is missing): only a run knows its data")
    find_adapter(path, None)
    experiment = load(run.config)
    return run, experiment, cached(open_dataset(experiment.data), experiment.data)


def own_split(run: RunFolder, dataset: Dataset, split: Literal["train", "val", "test"]) -> Split:
    """A split of a run's data set. Raises UserError where there is none, or it is not the one that the run had."""
    found = {"train": dataset.train, "val": dataset.val, "test": dataset.test}[split]
    if found is None:
        raise UserError(f"{dataset.name} has no {split} split in this run; see data.split in {run.config}")
    known = ((run.read_result() or {}).get("splits") or {}).get(split)
    if known is not None and known["sha256"] != found.sha256:
        raise UserError(
            f"the {split} split of {dataset.name} is not the one of the run: {known['size']} images "
            f"({known['sha256'][:12]}) then, {found.size} ({found.sha256[:12]}) now"
        )
    return found


def predict(loaded: Loaded, paths: Sequence[Path], top_k: int = 5) -> list[dict[str, Any]]:
    """The likeliest classes of image files: ``{"image": path, "predictions": [{"class": ..., "probability": ...}]}``.

    Raises UserError at an image that cannot be read.
    """
    size = min(loaded.experiment.data.batch_size, len(paths))
    results: list[dict[str, Any]] = []
    for first in range(0, len(paths), max(size, 1)):
        some = paths[first : first + size]
        images = np.zeros((size, loaded.image_size, loaded.image_size, 3), np.uint8)
        for row, path in zip(images, some, strict=False):
            row[...] = eval_image(path, loaded.preprocessing, loaded.image_size)
        for path, logits in zip(some, loaded.learner.logits(images).astype(np.float64), strict=False):
            odds = np.exp(logits - logits.max())
            best = np.argsort(-logits, kind="stable")[:top_k]
            results.append({
                "image": str(path),
                "predictions": [
                    {"class": loaded.classes[index], "probability": float(odds[index] / odds.sum())} for index in best
                ],
            })  # fmt: skip
    return results


def merge_run(
    path: Path,
    out: Path,
    backend: Literal["mlx", "torch"] | None = None,
    *,
    name: str | None = None,
    model: Model | None = None,
    dequantize: bool = False,
    requantize: bool = False,
) -> Written:
    """Writes the model of a run or adapter, merged into its base in float32, as a folder that timm opens.

    What was trained through codes is written in these. A quantised base stays quantised where the method adds nothing
    to its codes. Otherwise it must be said what the sum
    becomes: with ``dequantize`` a plain model, which is exact, with ``requantize`` one that is quantised again as its
    base was, which moves the logits.

    Raises UserError where the method cannot be merged, and where ``out`` is there and not empty.
    """
    must_be_new(out)
    if dequantize and requantize:
        raise UserError("--dequantize and --requantize: choose one")
    loaded = load_run(path, backend, name=name, precision="float32", model=model)
    if loaded.codes is None and (dequantize or requantize):
        raise UserError(f"the base of {path} is not quantised: leave --{'de' if dequantize else 're'}quantize out")
    if requantize:
        if loaded.base.quantization is None:
            raise UserError(f"{path} was trained through the codes that it is merged into: leave --requantize out")
        return requantized(loaded, out, loaded.base.quantization)
    tensors = loaded.learner.merged(dequantize=True) if dequantize else loaded.learner.merged()
    quantization = None if dequantize else loaded.codes
    write_model(out, base=loaded.base, tensors=tensors, classes=loaded.classes, quantization=quantization)
    return Written(quantization, {}, None)


def quantize_model(
    path: Path,
    out: Path,
    quantization: Quantization,
    backend: Literal["mlx", "torch"] | None = None,
    *,
    name: str | None = None,
    model: Model | None = None,
) -> Written:
    """Quantises a model's folder, or a run or adapter that is merged first, and writes it as a folder.

    Raises UserError where there is no such model, it cannot be merged or is quantised already, the group does not
    divide a layer's width, and where ``out`` is there and not empty.
    """
    must_be_new(out)
    if is_model(path):
        loaded = load_model(path, backend)
    else:
        loaded = load_run(path, backend, name=name, precision="float32", model=model)
    if loaded.base.quantization is not None:
        raise UserError(
            f"{path} is quantised already, to {described(loaded.base.quantization)}: merge it with --dequantize, or "
            "with --requantize, which keeps its bits"
        )
    if loaded.codes is not None:
        raise UserError(
            f"{path} was trained through codes of {described(loaded.codes)}: `mlx-peft merge` writes them as they are; "
            "for others, merge it with --dequantize and quantise that"
        )
    quantization.sites(loaded.base.architecture)
    return requantized(loaded, out, quantization)


def requantized(loaded: Loaded, out: Path, quantization: Quantization) -> Written:
    """Merges into plain weights, quantises these and writes them."""
    return write_quantized(
        out, loaded.learner, loaded.experiment, loaded.base, loaded.adapter.classes, len(loaded.classes), quantization
    )


def must_be_new(out: Path) -> None:
    """Raises UserError where ``out`` is there and not empty."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is already there: choose another folder")


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
        raise UserError(f"{path}: the model has no classifier: train one, with model.weights={path}")
    found = checkpoint.architecture.model_dump()
    args = {} if checkpoint.layout == "timm" else {field: found[field] for field in DECISIVE}
    model = Model(name=checkpoint.name, weights=str(path), args=args)
    experiment = Experiment(backend=backend or "mlx", model=model, method=Linear(), data=Data(name="none"))
    base = load_base(model, count, experiment.seed)
    learner = load_backend(experiment.backend).build(experiment, count, base)
    adapter = Adapter(
        method=experiment.method,
        tensors=learner.adapter(),
        classes=checkpoint.classes,
        model=model,
        architecture=base.architecture,
        preprocessing=base.preprocessing,
        base_sha256=base.sha256,
        source=base.source,
        quantize=base.quantization,
    )
    return Loaded(learner, adapter, base, experiment)
