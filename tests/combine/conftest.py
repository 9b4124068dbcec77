"""Adapters of small models on disk, to be combined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from banks import ARGS, SIZE, adapter, base_of

from convert.adapters.peft import write_adapter
from mlx_peft.config.methods import MethodConfig
from mlx_peft.config.schema import Model

Written = Callable[..., Path]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """``written(name, method, seed)`` is the folder of an adapter whose numbers are drawn, changed as it is said."""

    def write(
        name: str,
        method: MethodConfig,
        seed: int = 0,
        base: Any = None,
        classes: int = 5,
        named: tuple[str, ...] | None = None,
        **changes: Any,
    ) -> Path:
        own = adapter(base or base_of(), method, seed, classes=classes)
        model = Model(name="vit_tiny_patch16_224", weights="none", image_size=SIZE, args=ARGS)
        names = own.classes if named is None else named
        write_adapter(tmp_path / name, replace(own, model=model, classes=names, **changes))
        return tmp_path / name

    return write
