"""What was sent as images to what a model sees: a few threads decode, each image under limits."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np

from mlx_peft.core.errors import UserError
from mlx_peft.data.given import seen
from mlx_peft.data.limits import Limits, usually
from mlx_peft.data.memory import one_image
from mlx_peft.data.reading import decode_image
from mlx_peft.data.recipe import eval_image
from mlx_peft.serve.problems import unreadable
from mlx_peft.serve.settings import Settings
from mlx_peft.vit.architecture import Preprocessing


def decoders(settings: Settings) -> ThreadPoolExecutor:
    """The threads that decode."""
    return ThreadPoolExecutor(settings.decoders, thread_name_prefix="decode")


def decoded(
    images: Sequence[bytes | np.ndarray],
    recipes: Sequence[Preprocessing],
    size: int,
    within: Limits,
    over: threading.Event,
) -> np.ndarray:
    """Images as their models see them, uint8 ``(images, size, size, 3)``.

    Files are read as ``predict`` reads them from a disk, and arrays as it takes arrays: of the model's size as they
    are. Raises Problem, 422, which names the first that cannot be read; CancelledError once it is ``over``: the
    deadline, or whoever asked has gone.
    """
    found = np.empty((len(images), size, size, 3), np.uint8)
    with usually(within):
        for number, (image, recipe) in enumerate(zip(images, recipes, strict=True)):
            if over.is_set():
                raise CancelledError
            try:
                with one_image():
                    found[number] = _seen(image, f"images[{number}]", recipe, size)
            except UserError as error:
                raise unreadable(_named(str(error), number)) from None
    return found


def _seen(image: bytes | np.ndarray, name: str, recipe: Preprocessing, size: int) -> np.ndarray:
    if isinstance(image, np.ndarray):
        return seen(image, recipe, size)
    return eval_image(decode_image(image, name), recipe, size)


def _named(reason: str, number: int) -> str:
    name = f"images[{number}]"
    return reason if reason.startswith(name) else f"{name}: {reason}"
