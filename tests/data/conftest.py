"""Sets in their real layout, small: what a set states of its size is replaced by the fixture's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

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
