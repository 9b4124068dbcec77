"""What every export starts from: the merged model in evaluation, and images to compare it on."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import torch

from convert.base import Base
from mlx_peft.core.border import Tensors
from torch_ref.models.preprocess import preprocess
from torch_ref.models.vit import VisionTransformer
from torch_ref.parameters import load, to_numpy

Model = TypeVar("Model", bound=VisionTransformer)

BATCHES = (1, 7)
"""Numbers of images at which an exported model is compared: its batch is dynamic."""


def filled(kind: type[Model], base: Base, tensors: Tensors) -> Model:
    """The model with a plain state dictionary of timm's, in evaluation mode on the CPU.

    Raises:
        ValueError: where a tensor is missing, unknown or of another shape.
    """
    model = kind(base.architecture, len(tensors["head.weight"]))
    if missing := dict(model.named_parameters()).keys() - tensors.keys():
        raise ValueError(f"these tensors are missing: {', '.join(sorted(missing))}")
    load(model, tensors)
    return model.eval().requires_grad_(False)


def probes(base: Base, count: int) -> torch.Tensor:
    """Normalised noise images ``(count, size, size, 3)``, as the model's own images need not be at hand."""
    size = base.architecture.img_size
    images = np.random.default_rng(count).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return preprocess(torch.from_numpy(images), base.preprocessing, size, torch.float32)


@torch.inference_mode()
def expected(base: Base, tensors: Tensors) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each of BATCHES, images as ``(batch, 3, size, size)`` and the logits that the tensors give for them."""
    model = filled(VisionTransformer, base, tensors)
    for count in BATCHES:
        images = probes(base, count)
        yield to_numpy(images.permute(0, 3, 1, 2)), to_numpy(model(images))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the exporters' progress bars and their warnings about each other's versions off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
