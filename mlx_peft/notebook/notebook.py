"""What a notebook opens and measures by one call, bound to a backend."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from convert.named import known
from mlx_peft.artifacts.combine import Combined, Wish, combine
from mlx_peft.artifacts.examine import evaluate_run
from mlx_peft.artifacts.ingredients import Adapters
from mlx_peft.artifacts.load import Loaded, load_model, load_run
from mlx_peft.artifacts.place import is_model
from mlx_peft.config import files, recipes
from mlx_peft.config.schema import Data, Experiment, Model
from mlx_peft.core.errors import UserError
from mlx_peft.core.packaged import packaged
from mlx_peft.core.paths import given_path
from mlx_peft.core.problems import validated
from mlx_peft.data import eval_batches
from mlx_peft.library.asked import must_be_model
from mlx_peft.notebook import images
from mlx_peft.notebook.fitting import Fitted, Telling, fitted
from mlx_peft.protocols.loading import load_library
from mlx_peft.tasks.metrics import Metrics
from mlx_peft.training.evaluate import evaluate
from mlx_peft.training.progress import Progress, Silent
from mlx_peft.training.run import RunFolder, read_metrics
from mlx_peft.training.train import train

SHIPPED = "package:"


class Notebook:
    """The functions of a backend's notebook that need more than a model: files, data sets, runs."""

    def __init__(self, backend: Literal["mlx", "torch"]) -> None:
        self.backend = backend

    def load(
        self,
        source: str | os.PathLike[str],
        *,
        adapter: str | None = None,
        model: str | None = None,
        weights: str | None = None,
    ) -> Any:
        """Opens a model, from whatever there is of it: a module as ``create_model`` returns, with its classes' names.

        Args:
            source: a finished run or an adapter's folder, whose model then has the adapter in it; a whole model's
                folder, timm's or transformers'; a file of weights or a repository of the hub, with ``model``; a name
                of timm's, whose weights are fetched; or ``package:NAME``, a model that comes with this package.
            adapter: the name of the adapter, where the folder holds several.
            model: timm's name of the model, where the source does not say it, as an adapter that PEFT wrote does not.
            weights: where the weights below an adapter are now; None: they are found by their digest.

        Warns:
            UserWarning: for what should be known of the files, such as one without a digest.

        Raises:
            UserError: there is no such thing, or it is damaged, or an adapter's base is not found.
        """
        path, name = given_path(source, "what is loaded"), str(source)
        if name.startswith(SHIPPED):
            shipped = {folder.name: folder for folder in packaged("models").iterdir()}
            if (wanted := name.removeprefix(SHIPPED)) not in shipped:
                raise UserError(f"there is no model {wanted!r} in this package; it has {', '.join(sorted(shipped))}")
            found = self._without_method(load_model(shipped[wanted], self.backend), ())
            found.description = found.description.model_copy(update={"weights": name})
            return found
        if path.is_dir() and adapter is None and is_model(path):
            loaded = load_model(path, self.backend)
            return self._without_method(loaded, loaded.notes)
        if path.is_dir():
            options = {"name": model, "weights": weights or "timm"}
            named = None if model is None else validated(Model, "model", options)
            loaded = load_run(path, self.backend, name=adapter, precision="float32", model=named, weights=weights)
            return self._adopted(loaded, loaded.notes)
        library = load_library(self.backend)
        if model is not None:
            return library.create_model(model, weights=name)
        if path.exists():
            raise UserError(f"{path} is a file of weights: say of which model, by timm's name, model=")
        try:
            known(name)
        except UserError as error:
            raise UserError(f"{path}: no such file or folder here, and as a name: {error}") from None
        return library.create_model(name)

    def combine(
        self,
        adapters: Adapters,
        out: str | os.PathLike[str],
        how: str | None = None,
        *,
        rank: int | None = None,
        density: float | None = None,
        seed: int | None = None,
        majority_sign_method: str | None = None,
        head: str | None = None,
        model: str | None = None,
        base_weights: str | None = None,
    ) -> Combined:
        """Combines adapters of one base into a new one, which is written to a folder.

        Args:
            adapters: folders of adapters or runs with their weights, ``{"runs/a": 0.7, "runs/b": 0.3}``; in a list all
                have the weight 1. The weights are taken as they are.
            out: the folder to write; an earlier adapter in it is replaced.
            how: one of PEFT's ways, ``cat``, ``linear``, ``svd``, ``ties``, ``dare_linear``, ``dare_ties``,
                ``magnitude_prune``, or one of the last four with ``_svd``; None: the one that gives exactly the
                weighted sum of what they add to the base.
            rank: the rank of the result, of ``svd`` and those that end in it; None: the largest of the adapters'.
            density: the share of each adapter's elements that is kept, of all ways but ``cat``, ``linear``, ``svd``.
            seed: by which ``dare`` draws what is kept; None: 0.
            majority_sign_method: how ``ties`` elects a sign, by ``total`` or ``frequency``; None: ``total``.
            head: the name of the adapter whose head is wanted, ``mean``, or ``join`` for the classes of all; None
                will do where there is one adapter, or all have the same head.
            model: timm's name of the model, where no adapter says it, as those that PEFT wrote do not.
            base_weights: where the weights of the base are now, if they are needed and not found.

        Raises:
            UserError: an adapter is damaged, of another base, or of a method whose updates do not add up to one
                adapter; a way lacks something, or has no use for it; it was not said which head is wanted.
        """
        wish = Wish(how, rank, density, seed, majority_sign_method, head)
        options = {"name": model, "weights": base_weights or "timm"}
        named = None if model is None else validated(Model, "model", options)
        place = given_path(out, "the folder to write")
        return combine(adapters, place, wish, self.backend, model=named, weights=base_weights)

    def fit(
        self,
        what: Any,
        data: Any = None,
        *,
        out: str | os.PathLike[str] | None = None,
        epochs: int | None = None,
        lr: float | None = None,
        batch_size: int | None = None,
        val: float | None = None,
        seed: int = 0,
        quiet: bool = False,
        **options: Any,
    ) -> Fitted:
        """Trains as a run does: shuffled batches, a schedule, and the epoch selected that is best on images held out.

        A model is trained from where it is, and has the parameters of the selected epoch afterwards; an experiment
        becomes a run in a folder. Of the arguments ``data`` and those from ``epochs`` to ``seed``, and ``options``, are
        for a model: an experiment says all that itself.

        Args:
            what: a model that has a method; or an experiment: ``Experiment(...)``, a file, or a recipe's name.
            data: the images to train on, in any form that ``evaluate`` takes.
            out: the folder of the run that an experiment becomes. None for a model.
            epochs: how often the images are gone through; None: 10.
            lr: the learning rate of AdamW; None: 1e-3.
            batch_size: images of a step; None: as ``data`` says, or 64.
            val: the share of the images that is held out to select the epoch by, where they have no such split; 0:
                none, and the last epoch counts; None: as ``data`` says, or a tenth.
            seed: of the order of the images, of augmentation, and of all else that is drawn at random.
            quiet: whether nothing is printed.
            options: the other keys of an experiment's ``train``: ``label_smoothing=0.1``.

        Raises:
            UserError: the experiment is not a valid one, or its images, classes or weights are not there or do not fit.
            KeyboardInterrupt: a person stopped it; a model has what was trained until then.
        """
        if isinstance(what, Experiment | str | os.PathLike):
            given = {"epochs": epochs, "lr": lr, "batch_size": batch_size, "val": val, "data": data, **options}
            if said := [name for name, value in given.items() if value is not None]:
                raise UserError(f"an experiment says itself what {said[0]} is: change it there")
            if out is None:
                raise UserError("an experiment becomes a run: say in which folder, out=")
            return self._run(what, given_path(out, "out"), Silent() if quiet else Telling(notes=True))
        must_be_model(what)
        if out is not None:
            raise UserError(
                "a model is trained where it stands, without a folder: leave out= out, and save its adapter"
            )
        given = {} if epochs is None else {"epochs": epochs}
        given |= {} if lr is None else {"optimizer": {"name": "adamw", "lr": lr}}
        config = images.section(data, batch_size, val)
        return self._in_place(what, data, config, seed, given | options, Silent() if quiet else Telling())

    def _in_place(
        self, model: Any, data: Any, config: Data, seed: int, options: Mapping[str, Any], progress: Progress
    ) -> Fitted:
        """A model trained further where it stands; ``options`` are those of an experiment's ``train``."""
        library = load_library(self.backend)
        if model.method is None:
            raise UserError("the model has no method: add one with add_adapter; 'full' trains all there is")
        method, start = library.adapter(model)
        experiment = Experiment(
            backend=self.backend,
            seed=seed,
            model=model.description,
            method=method,
            quantize=model.quantization,
            qat=model.qat,
            data=config,
            train=options,
        )
        dataset = images.dataset(data, config, model)
        images.must_fit(dataset, model)
        preprocessing = images.as_trained_on(dataset, model)
        return fitted(
            experiment,
            start,
            model.base.sha256,
            dataset,
            lambda tensors: library.take(model, tensors, dataset.classes, preprocessing),
            progress,
        )

    def _run(self, what: Any, out: Path, progress: Progress) -> Fitted:
        """An experiment as a run in a folder of its own."""
        beside = None if isinstance(what, Experiment) else recipes.folder_of(str(what))
        experiment = what if isinstance(what, Experiment) else files.load(recipes.locate(str(what)))
        experiment = experiment.model_copy(update={"backend": self.backend})
        result = train(experiment, out, beside=beside, progress=progress)
        metrics, history = result["metrics"], read_metrics(RunFolder(out).metrics)
        return Fitted(metrics["val"], metrics["test"], result["selected"]["epoch"], history, out)

    def evaluate(
        self,
        model: Any,
        data: Any = None,
        split: Literal["val", "test"] | None = None,
        *,
        batch_size: int | None = None,
    ) -> Metrics:
        """How good a model is, as metrics by name: ``loss``, ``count`` (of images), ``top1`` and so on.

        Args:
            model: a model, or a finished run's folder.
            data: a folder with a folder of images for each class, the name of a data set, ``Data(...)``, or two arrays,
                images and labels. None: a run's own.
            split: which images; None: ``test`` where there is such a split, or else all.
            batch_size: images at once; None: as ``data`` says, or 64. A run on its own images says it itself.

        Warns:
            UserWarning: there are no images of some of the model's classes.

        Raises:
            UserError: there is no such split, or the model does not know one of the data's classes. They are compared
                by their names, or where the model's classes have none, by how many there are.
        """
        if isinstance(model, str | os.PathLike):
            if data is None:
                if batch_size is not None:
                    raise UserError("a run says itself what batch_size is: leave it out, or say which images, data=")
                return evaluate_run(given_path(model, "the run"), split or "test", self.backend)
            model = self.load(model)
        must_be_model(model)
        if data is None:
            raise UserError("a model knows no images: say which, data=")
        config = images.section(data, batch_size)
        if split is None and config.split.test == 0:
            config = config.model_copy(update={"split": config.split.model_copy(update={"val": 0.0})})
        opened = images.dataset(data, config, model)
        name = split or ("test" if opened.test is not None else "train")
        if name not in opened.splits:
            raise UserError(f"{opened.name} has no {name} split; it has {', '.join(opened.splits)}")
        labelled, notes = images.labelled_for(model, opened, opened.splits[name])
        for note in notes:
            warnings.warn(note, stacklevel=2)
        split_seen = images.seen(labelled, model)
        batches = eval_batches(split_seen, config, model.base.preprocessing, model.architecture.img_size)
        return evaluate(model, batches, opened.task, model.head.weight.shape[0])

    def _adopted(self, loaded: Loaded, notes: Sequence[str]) -> Any:
        """The module of what was opened, with what the library keeps with one."""
        for note in notes:
            warnings.warn(note, stacklevel=4)
        network, recipe, model = loaded.model.network, loaded.recipe, loaded.recipe.model
        if model.is_local:  # where its weights were found
            model = model.model_copy(update={"weights": loaded.base.source})
        network.method = loaded.adapter.method
        load_library(self.backend).adopt(network, model, loaded.base, loaded.adapter.classes, recipe.qat)
        return network

    def _without_method(self, loaded: Loaded, notes: Sequence[str]) -> Any:
        """The same of a whole model, in which a method alone would have frozen what is there."""
        network = self._adopted(loaded, notes)
        load_library(self.backend).remove_adapter(network)
        return network
