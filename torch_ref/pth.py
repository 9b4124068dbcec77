"""PyTorch's own files, which are pickles: only tensors and plain containers are ever read from them."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import torch

from mlx_peft.config.errors import UserError

CONTAINERS = ("model", "state_dict")


def read_pth(path: Path) -> dict[str, np.ndarray]:
    """The float32 tensors of a state dictionary, out of the ``model`` or ``state_dict`` that may hold it.

    Raises:
        UserError: where the file is damaged, would have run code, holds compressed data (torch writes none, and a small
            file of it could fill the memory) or anything else than tensors by name.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise UserError(f"{path}: a compressed archive, which PyTorch does not write")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"the object {refused[1]}" if refused else "more than tensors"
        raise UserError(f"{path}: a pickle that holds {what}; it was not loaded and nothing of it was run") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a whole PyTorch file: {error or 'it ends too early'}") from error

    for container in CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(container), dict):
            content = content[container]
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: a dictionary of tensors was expected, not {type(content).__name__}")
    others = sorted(str(name) for name, value in content.items() if not isinstance(value, torch.Tensor))
    if others:
        raise UserError(f"{path}: not tensors: {', '.join(others[:12])}")
    integers = sorted(name for name, value in content.items() if not value.is_floating_point())
    if integers:
        raise UserError(f"{path}: tensors are not of a float type: {', '.join(integers[:12])}")
    return {str(name): value.detach().float().contiguous().numpy() for name, value in content.items()}
