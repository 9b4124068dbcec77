"""What the text of ``model.weights`` names, as far as that can be told without asking anybody."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mlx_peft.vit.registry import names

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar", ".ckpt", ".npz")
"""A text that ends so is a file's name."""

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def on_hub(weights: str) -> bool:
    """Whether a repository of the hub is named, ``OWNER/NAME``, or weights of timm's: nothing here has that name."""
    model = weights.removeprefix("timm/").partition(".")[0]
    if REPOSITORY.fullmatch(weights) is None and model not in names():
        return False
    return not weights.endswith(SUFFIXES) and not Path(os.path.expanduser(weights)).exists()
