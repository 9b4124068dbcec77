"""Images on disk to uint8 NumPy batches, the same whatever the backend and the number of threads.

The names are found on first use: a process that only makes rows for another starts without the sets and their readers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_peft.data.batch import Batch
    from mlx_peft.data.cached_images import cached
    from mlx_peft.data.dataset import ArrayImages, Dataset, EncodedImages, FileImages, Images, Split
    from mlx_peft.data.features import eval_features, train_features
    from mlx_peft.data.opening import open_dataset
    from mlx_peft.data.pipeline import eval_batches, steps_per_epoch, train_batches
    from mlx_peft.data.reading import read_image
    from mlx_peft.data.recipe import eval_image
    from mlx_peft.data.registry import REGISTRY, find

__all__ = [
    "REGISTRY",
    "ArrayImages",
    "Batch",
    "Dataset",
    "EncodedImages",
    "FileImages",
    "Images",
    "Split",
    "cached",
    "eval_batches",
    "eval_features",
    "eval_image",
    "find",
    "open_dataset",
    "read_image",
    "steps_per_epoch",
    "train_batches",
    "train_features",
]

_HOMES = {
    "Batch": "batch",
    "cached": "cached_images",
    **dict.fromkeys(("eval_features", "train_features"), "features"),
    "open_dataset": "opening",
    **dict.fromkeys(("eval_batches", "steps_per_epoch", "train_batches"), "pipeline"),
    "read_image": "reading",
    "eval_image": "recipe",
    **dict.fromkeys(("REGISTRY", "find"), "registry"),
}
"""The other names are of ``dataset``."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'dataset')}"), name)


def __dir__() -> list[str]:
    return __all__
