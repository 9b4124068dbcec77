"""A tree of class folders with small images."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from mlx_peft.config import schema
from mlx_peft.data import Dataset, open_dataset


def save(path: Path, colour: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (colour, 128, 255 - colour)).save(path)
    return path


def tree(root: Path, *classes: str, count: int = 4, suffix: str = "jpg") -> Path:
    for name in classes:
        for number in range(count):
            save(root / name / f"{number}.{suffix}", 40 * number)
    return root


def opened(root: Path, val: float = 0.25, test: float = 0.0, **data: object) -> Dataset:
    return open_dataset(schema.Data(name="folder", root=root, split=schema.Split(val=val, test=test), **data))
