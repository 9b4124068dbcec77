"""Sets in their real layout, small: what a set states of its size is replaced by the fixture's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlx_peft.config import schema
from mlx_peft.data import Dataset, find
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
