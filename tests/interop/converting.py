"""The convert command on a small model, and what its libraries say of what it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from foreign_models import SIZE
from safetensors.torch import save_file
from typer.testing import CliRunner

from convert.base import Base, whole
from convert.layouts.layout import Asked
from convert.open import open_path
from mlx_peft.cli.app import app

CLASSES = ("cat", "dog", "emu")
ARGS: dict[str, Any] = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}


def command(*arguments: object, backend: str = "torch") -> Any:
    return CliRunner().invoke(app, ["convert", *map(str, arguments)], obj=backend)


def converted(*arguments: object, backend: str = "torch") -> dict[str, Any]:
    done = command(*arguments, "--json", backend=backend)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def write(path: Path, model: torch.nn.Module) -> Path:
    save_file(model.state_dict(), path)
    return path


def opened(path: Path) -> Base:
    asked = Asked("vit_tiny_patch16_224.augreg_in21k")
    return whole(open_path(path, asked), SIZE, ARGS)


def theirs(source: Path, images: np.ndarray) -> np.ndarray:
    """What timm computes with the source."""
    with torch.no_grad():
        return timm.create_model(f"local-dir:{source}", pretrained=True).eval()(normalised(images)).numpy()


def normalised(images: np.ndarray) -> torch.Tensor:
    return ((torch.from_numpy(images) / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)
