"""Images on disk to uint8 NumPy batches, the same whatever the backend and the number of threads."""

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
