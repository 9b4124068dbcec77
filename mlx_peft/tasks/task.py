"""What is asked of a model about an image, as an object: all that follows from it is asked of the object."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from mlx_peft.config.data import Data
from mlx_peft.tasks.answers import ACTIVATIONS
from mlx_peft.tasks.metrics import Answers, Evaluation

NONE = "none of them"
"""This stands in the place of a class where an image has none."""


class Task(ABC):
    """A task: what a data set's labels say, what becomes of them in a batch, and how answers are measured and told.

    A task without a framework is one object of this class, registered in ``tasks.registry``; its loss stands in
    ``losses.py`` of each backend, under its name. The head has a row for each of the data set's names: of classes,
    of values.

    Attributes:
        name: transformers' ``problem_type``, which files hold.
        image: what is true of every image, after "an image": ``has one class``.
        fewest: rows that the head must have, at least, to say anything.
        figures: the metrics that are fractions and are told to a person, and what they are called.
        columns: those of them that a table has; the first is the one by which epochs are chosen and runs compared.
        agreement: what two models that answer alike have in common: ``same class``.
        activation: what makes probabilities of logits: ``softmax``, ``sigmoid``; ``identity``: they are values.
        reading: how logits are to be read, for a person; None where it is what everybody expects of a classifier.
        entry: the keys of an entry of ``answer``, as a table has them for columns.
        hub_task, hub_metrics: the task and the metrics in the words of Hugging Face's hub.
    """

    name: ClassVar[str]
    image: ClassVar[str]
    fewest: ClassVar[int]
    figures: ClassVar[Mapping[str, str]]
    columns: ClassVar[tuple[str, ...]]
    agreement: ClassVar[str]
    activation: ClassVar[str]
    reading: ClassVar[str | None] = None
    entry: ClassVar[tuple[str, ...]] = ("class", "probability")
    hub_task: ClassVar[str]
    hub_metrics: ClassVar[Mapping[str, str]]

    # Labels: an array of a row for each image, whose rank and type are the task's own.

    @abstractmethod
    def check_options(self, config: Data) -> None:
        """Raises UserError where the ``data`` section asks for what labels of this task do not have."""

    @abstractmethod
    def fault(self, labels: np.ndarray, classes: int) -> str | None:
        """What is wrong with the labels of a split, one at least, after its name; None where nothing is."""

    @abstractmethod
    def rows_of(self, labels: np.ndarray, label: int) -> np.ndarray:
        """The images that have a class, by row, in their order: int64."""

    def rows_of_none(self, labels: np.ndarray) -> np.ndarray | None:
        """The images that have no class, likewise; None where there is no such image in any data set."""
        return None

    @abstractmethod
    def counts(self, labels: np.ndarray, classes: int) -> np.ndarray:
        """How many images have each class, int64 ``(classes,)``."""

    @abstractmethod
    def strata(self, labels: np.ndarray) -> np.ndarray:
        """What held-out images are spread over evenly: int64 ``(n,)``, 0 or more."""

    @abstractmethod
    def relabelled(self, labels: np.ndarray, rows: np.ndarray, classes: int) -> np.ndarray:
        """The same labels where class ``n`` has become ``rows[n]`` of so many classes."""

    def differ(self, labels: np.ndarray, label: np.ndarray) -> np.ndarray:
        """Whether each row says something else than ``label``, a row itself: bool ``(n,)``."""
        differing: np.ndarray = (labels != label).reshape(len(labels), -1).any(axis=1)
        return differing

    @abstractmethod
    def written(self, label: np.ndarray) -> str:
        """A row in figures, as a split's hash has it."""

    @abstractmethod
    def named(self, label: np.ndarray, classes: Sequence[str]) -> str:
        """A row in words."""

    # Targets: what crosses to a backend, a batch's worth of rows.

    @abstractmethod
    def weights(self, labels: np.ndarray, config: Data, num_classes: int | None) -> np.ndarray | None:
        """What answers count in the loss, float32, made once for a split; None where ``targets`` need no weights.

        Raises ValueError where the number of classes is needed and None.
        """

    @abstractmethod
    def targets(self, labels: np.ndarray, rows: int, weights: np.ndarray | None, smoothing: float) -> np.ndarray:
        """The targets of a batch of so many rows, of which the first have these labels; the others add nothing.

        Where images may be mixed, targets are floats, and a mixed image's are the mean of both, by their shares.
        """

    @abstractmethod
    def counted(self, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """What each answer to these labels counts, by ``weights``: float32, of any shape."""

    @abstractmethod
    def total_weight(self, targets: np.ndarray) -> float:
        """What a batch's loss is divided by, where nobody says otherwise; 1 where its targets count nothing."""

    @abstractmethod
    def shares(self, target: np.ndarray, num_classes: int) -> tuple[np.ndarray, float]:
        """What a row of targets says: each class's share, ``(classes,)``, and what the image counts."""

    # Metrics.

    @abstractmethod
    def examined(self, answers: Iterable[Answers], num_classes: int, auroc: bool) -> Evaluation:
        """What logits are worth, from all batches, one at least. Without ``auroc`` what takes long is left out."""

    @abstractmethod
    def decided(self, logits: np.ndarray) -> np.ndarray:
        """What is answered, in which two models agree or not: ``(images, ...)`` of float ``(images, classes)``."""

    def leading(self, metrics: Mapping[str, float]) -> str:
        """The metric by which epochs are chosen and runs compared: the first of ``columns``, else the loss."""
        return next((name for name in self.columns[:1] if name in metrics), "loss")

    def score(self, metrics: Mapping[str, float]) -> tuple[float, float]:
        """Larger is better: first the leading metric, then the lower loss."""
        first = {**metrics, "loss": -metrics["loss"]}[self.leading(metrics)]
        return first, -metrics["loss"]

    # Answers.

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """What the logits of one image say, ``(classes,)``: of each class how likely it is."""
        return ACTIVATIONS[self.activation](logits)

    @abstractmethod
    def answer(self, logits: np.ndarray, classes: Sequence[str], top: int) -> list[dict[str, Any]]:
        """What a person is told of an image, float64 ``(classes,)``: at most so many entries, for JSON."""

    @abstractmethod
    def outputs(self, rows: int) -> str:
        """What a head of so many rows gives, in words: ``3 classes``."""

    @abstractmethod
    def line(self, entry: Mapping[str, Any]) -> str:
        """An entry of ``answer`` in a line; whatever is in a name, a terminal obeys none of it."""
