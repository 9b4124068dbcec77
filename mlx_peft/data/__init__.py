"""Images on disk to uint8 NumPy batches, the same whatever the backend and the number of threads."""

from mlx_peft.data.dataset import ArrayImages, Dataset, EncodedImages, FileImages, Images, Split
from mlx_peft.data.opening import open_dataset
from mlx_peft.data.pipeline import Batch, eval_batches, feature_batches, steps_per_epoch, train_batches
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
    "eval_batches",
    "eval_image",
    "feature_batches",
    "find",
    "open_dataset",
    "read_image",
    "steps_per_epoch",
    "train_batches",
]
