"""Small sets for the pipeline, of files and of arrays."""

from __future__ import annotations

from mlx_peft.config import schema
from mlx_peft.data import (
    Batch,
    Split,
    train_batches,
)
from mlx_peft.vit.architecture import Preprocessing

BICUBIC = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
BILINEAR = BICUBIC.model_copy(update={"interpolation": "bilinear"})
AUGMENTS = {
    "none": schema.Augment(),
    "flip": schema.Augment(flip=True),
    "padded": schema.Augment(crop="padded", flip=True),
    "random_resized": schema.Augment(crop="random_resized", flip=True),
    "randaugment": schema.Augment(crop="padded", flip=True, randaugment=schema.RandAugment(), mixup=0.8, cutmix=1.0),
    "jitter": schema.Augment(
        flip=True,
        color_jitter=schema.ColorJitter(hue=0.1),
        erasing=schema.Erasing(probability=0.7, fill="noise"),
        repeats=3,
    ),
}
CLASSES = 3


def data(augment: str = "none", batch_size: int = 8, threads: int = 2) -> schema.Data:
    return schema.Data(name="folder", batch_size=batch_size, threads=threads, augment=AUGMENTS[augment])


def train(split: Split, config: schema.Data, preprocessing: Preprocessing = BICUBIC, **where: int) -> list[Batch]:
    where = {"seed": 0, "epoch": 0, "num_classes": CLASSES} | where
    return list(train_batches(split, config, preprocessing, 32, **where))


def content(batches: list[Batch]) -> list[bytes]:
    return [batch.images.tobytes() + batch.targets.tobytes() for batch in batches]
