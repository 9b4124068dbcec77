"""A folder of images whose pixels are kept once they are decoded, and what is kept of them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mlx_peft.config import schema
from mlx_peft.data import Dataset, train_batches
from mlx_peft.vit.architecture import Preprocessing

COUNT = 24


def data(root: Path, **options: object) -> schema.Data:
    cache = {"gigabytes": 1, "folder": root.parent / "cache"} | options
    augment = schema.Augment(crop="random_resized", flip=True)
    split = schema.Split(val=0)
    return schema.Data(name="folder", root=root, batch_size=8, split=split, augment=augment, cache=cache)


def epoch(
    opened: Dataset, config: schema.Data, number: int = 0, interpolation: Literal["bilinear", "bicubic"] = "bicubic"
) -> list[bytes]:
    preprocessing = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation=interpolation)
    batches = train_batches(opened.train, config, preprocessing, 32, seed=0, epoch=number)
    return [batch.images.tobytes() for batch in batches]


def entries(root: Path) -> list[Path]:
    return sorted((root.parent / "cache" / "mlx-peft-cache" / "decoded").glob("*/*.rgb"))
