"""What a method starts from that no model holds: made of the plain weights, or of what training images make of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import NamedTuple

import numpy as np

from convert import tensor_file
from convert.base import Base
from mlx_peft.adaptation.eva import Explained, with_ranks
from mlx_peft.codes import loftq
from mlx_peft.config.methods import Linear, LoRA, Method
from mlx_peft.config.methods.base import Given
from mlx_peft.config.schema import Experiment
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError
from mlx_peft.core.text import counted
from mlx_peft.data import Dataset
from mlx_peft.protocols.loading import load_backend
from mlx_peft.training.feed import feed
from mlx_peft.training.run import RunFolder
from mlx_peft.vit.architecture import Architecture

PARAMETERS = "parameters."
"""The names of parameters begin so in a checkpoint: see ``protocols.trainer.Trainer.state``."""

B_NAME = ".lora_B"


class Initial(NamedTuple):
    """A method as it is put into a model, the tensors that its adapter starts from by name, and notes for a person."""

    method: Method
    tensors: Tensors
    notes: tuple[str, ...] = ()


def initial(experiment: Experiment, base: Base, dataset: Dataset) -> Initial:
    """What a model is given beside what it starts from by itself; nothing for most methods.

    Args:
        base: with its tensors.

    Raises:
        UserError: where the base, or the images, are not what the start is made of.
    """
    return STARTS[experiment.method.given](experiment, base, dataset)


def nothing(experiment: Experiment, base: Base, dataset: Dataset) -> Initial:
    """A model starts by itself."""
    return Initial(experiment.method, {})


def of_weights(experiment: Experiment, base: Base, dataset: Dataset) -> Initial:
    """LoftQ's codes and factors. Raises UserError where the weights were found in codes."""
    return Initial(experiment.method, codes_and_factors(experiment.method, base))


def codes_and_factors(method: Method, base: Base) -> Tensors:
    """The same without images. Raises UserError likewise."""
    assert isinstance(method, LoRA) and base.quantization is not None, "see check_quantization"
    if base.packed:
        raise UserError(
            f"method.init: {method.init} chooses codes for weights that have none yet, and {base.source} is quantised "
            "already: name the plain weights, and set quantize"
        )
    return loftq.start(method, base.architecture, base.tensors, base.quantization)


def of_images(experiment: Experiment, base: Base, dataset: Dataset) -> Initial:
    """EVA's ranks and factors, from the first batches of the first epoch, in a plain model and evaluation mode.

    A batch goes through the model in as many parts as in a step of training. Raises UserError where all batches
    together are too small.
    """
    assert isinstance(experiment.method, LoRA)
    backend, classes = load_backend(experiment.backend), len(dataset.classes)
    model = backend.build_model(base, classes, Linear(), seed=experiment.seed, tokens=experiment.tokens)
    explained, seen = Explained(experiment.method, base.architecture), 0
    for batch in islice(feed(experiment, dataset, base).train(0, 0), experiment.method.eva.batches):
        for images in np.array_split(batch.images[: batch.count], experiment.train.accumulate):
            if len(images):
                model.record(images, explained, explained.active)
        explained.deal()
        seen += 1
        if explained.settled:
            break
    method, tensors = explained.result()
    return Initial(method, tensors, (told(explained, seen),))


def told(explained: Explained, batches: int) -> str:
    """What was looked at and what followed, in a sentence."""
    ranks = explained.ranks.values()
    left = f"; {counted(len(explained.active), 'layer')} still turned" if explained.active else ""
    return f"init: eva looked at {counted(batches, 'batch')}{left}; ranks are {min(ranks)} to {max(ranks)}"


STARTS: Mapping[Given | None, Callable[[Experiment, Base, Dataset], Initial]] = {
    None: nothing,
    "weights": of_weights,
    "images": of_images,
}
"""What makes a start, by what it is made from."""


def again(method: Method, architecture: Architecture, ranks: Mapping[str, int]) -> Method:
    """The method of a run that goes on, whose tensors have these ranks; a layer without any has none."""
    if method.given != "images" or not ranks:
        return method
    assert isinstance(method, LoRA)
    return with_ranks(method, dict.fromkeys((site.path for site in method.sites(architecture)), 0) | {**ranks})


def ranks_in(folder: RunFolder) -> dict[str, int]:
    """The rank of each layer's tensors in a run's newest checkpoint that can be read; empty where there is none."""
    for path in (folder.last, folder.previous):
        try:
            entries = tensor_file.open_file(path).entries if path.exists() else {}
        except UserError:
            continue
        held = {name: entry["shape"] for name, entry in entries.items() if name.startswith(PARAMETERS)}
        factors = {name: shape for name, shape in held.items() if name.endswith(B_NAME)}
        if factors:
            return {n.removeprefix(PARAMETERS).removesuffix(B_NAME): shape[1] for n, shape in factors.items()}
    return {}
