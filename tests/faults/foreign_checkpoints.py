"""A small model in the layouts of others, to be damaged, and the refusal of what was."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from convert.base import load_base
from convert.files import write_json, write_safetensors
from convert.layouts import transformers
from mlx_peft.artifacts.convert import convert
from mlx_peft.config.schema import Model
from mlx_peft.core.errors import UserError

SIZES: dict[str, Any] = {"depth": 2, "embed_dim": 24, "num_heads": 3}
NAME = "vit_tiny_patch16_224.augreg_in21k"
BASE = load_base(Model(name=NAME, weights="none", image_size=32, args=SIZES), 2, seed=0)

many = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def refused(source: Path, **asked: Any) -> str:
    """What a conversion says that must not succeed, once it has left nothing behind."""
    before = sorted(source.parent.rglob("*"))
    with pytest.raises(UserError) as caught:
        convert(str(source), source.parent / "out", "mlx", verify=False, **asked)
    assert sorted(source.parent.rglob("*")) == before
    return str(caught.value)


class Bomb:
    """A pickle that would write a file when loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


TRANSFORMERS = transformers.pack(BASE.architecture, BASE.preprocessing, BASE.tensors, ("a", "b"))


def folder(path: Path, config: dict[str, Any], processor: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    path.mkdir(exist_ok=True)
    write_json(path / "config.json", config)
    write_json(path / "preprocessor_config.json", processor)
    write_safetensors(path / "model.safetensors", tensors)
    return path
