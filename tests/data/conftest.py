"""Sets in their real layout, small: what a set states of its size is replaced by the fixture's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data.caches import COUNT
from PIL import Image

from mlx_peft.config import schema
from mlx_peft.data import (
    ArrayImages,
    Dataset,
    Split,
    find,
    open_dataset,
)
from mlx_peft.data.opening import open_entry

Open = Callable[..., Dataset]


@pytest.fixture
def opened_as() -> Open:
    """Opens a set by its real reader, its variant's published sizes replaced."""

    def opened(name: str, root: Path, sizes: Mapping[str, int] | None = None, **data: object) -> Dataset:
        config = schema.Data(name=name, root=root, **data)
        entry = find(name)
        if sizes is not None:
            chosen = entry.variant(name, config.variant)
            entry = replace(entry, variants=(replace(chosen, sizes=sizes),))
        return open_entry(entry, config)

    return opened


Save = Callable[..., Path]


@pytest.fixture
def save() -> Save:
    """Writes a small image of a seed's noise, in the format of its suffix; the modes are Pillow's."""

    def saved(path: Path, seed: int = 0, mode: str = "RGB", size: tuple[int, int] = (10, 8), **options: object) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
        form = options.pop("format", None)
        Image.fromarray(pixels).convert(mode).save(path, form, **options)
        return path

    return saved


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Photographs of two classes, in folders."""
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (8, 9, 3), np.uint8)
        Image.fromarray(pixels).resize((60 + number, 90 - number), Image.Resampling.BICUBIC).save(path)
    return tmp_path / "images"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """37 JPEGs and PNGs of different sizes."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(37):
        path = root / "ab"[number % 2] / f"{number}.{'png' if number % 5 == 0 else 'jpg'}"
        path.parent.mkdir(exist_ok=True)
        small = rng.integers(0, 256, (8, 9, 3), np.uint8)
        size = (50 + number, 70 - number)
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path)
    return open_dataset(schema.Data(name="folder", root=root, split=schema.Split(val=0))).train


@pytest.fixture(scope="module")
def arrays() -> Split:
    pixels = np.random.default_rng(1).integers(0, 256, (37, 12, 10, 3), np.uint8)
    return Split("train", ArrayImages.whole(pixels, "train"), np.arange(37) % 3)
