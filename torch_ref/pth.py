"""PyTorch's own files, which are pickles: only tensors and plain containers are ever read from them."""

from __future__ import annotations

import argparse
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from convert.files import COUNTERS
from mlx_peft.config.errors import UserError

CONTAINERS = ("model", "state_dict", "teacher", "student", "model_ema", "state_dict_ema", "module")
"""Keys under which training code keeps a state dictionary."""

HARMLESS = [argparse.Namespace]
"""What training code keeps beside it, and is allowed for: a plain container, of which nothing is used."""


def read_pth(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a state dictionary as float32, out of the containers that may hold it; mapped where they can be.

    Where there are several models (``teacher`` and ``student``), all are read, with their containers in the names.

    Raises:
        UserError: where the file is damaged, would have run code, is larger inside than outside (compressed, or tensors
            that repeat a few bytes: torch writes neither, and a small file could fill the memory), or holds anything
            else than tensors by name.
    """
    size = path.stat().st_size
    try:
        archive = zipfile.is_zipfile(path)
        if archive:
            with zipfile.ZipFile(path) as opened:
                entries = opened.infolist()
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                    raise UserError(f"{path}: a compressed archive, which PyTorch does not write")
                if (claimed := sum(entry.file_size for entry in entries)) > size:
                    raise UserError(f"{path}: an archive of {size:,} bytes that claims to hold {claimed:,}")
        with torch.serialization.safe_globals(HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"the object {refused[1]}" if refused else "more than tensors"
        raise UserError(f"{path}: a pickle that holds {what}; it was not loaded and nothing of it was run") from error
    except UserError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its garbage leads to
        raise UserError(f"{path}: not a whole PyTorch file: {error or 'it ends too early'}") from error

    content = _unwrapped(content)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: a dictionary of tensors was expected, not {type(content).__name__}")
    others = sorted(str(name) for name, value in content.items() if not isinstance(value, torch.Tensor))
    if others:
        raise UserError(f"{path}: not tensors: {', '.join(others[:12])}")
    odd = sorted(
        str(n) for n, t in content.items() if t.layout is not torch.strided or t.device.type != "cpu" or t.is_quantized
    )
    if odd:
        raise UserError(f"{path}: not plain tensors: {', '.join(odd[:12])}")
    if (claimed := sum(value.numel() * value.element_size() for value in content.values())) > size:
        raise UserError(f"{path}: tensors of {claimed:,} bytes in a file of {size:,}: they repeat a few bytes")
    integers = sorted(
        str(name)
        for name, value in content.items()
        if not value.is_floating_point() and str(name).rpartition(".")[2] not in COUNTERS
    )
    if integers:
        raise UserError(f"{path}: tensors are not of a float type: {', '.join(integers[:12])}")
    return {str(name): value.detach().float().contiguous().numpy() for name, value in content.items()}


def _unwrapped(content: Any, depth: int = 4) -> Any:
    """The state dictionary inside of what training code keeps around it; of several, one with all their tensors."""
    found = [name for name in CONTAINERS if isinstance(content, dict) and isinstance(content.get(name), dict)]
    if not found or not depth:
        return content
    inner = {name: _unwrapped(content[name], depth - 1) for name in found}
    if len(inner) == 1:
        return inner[found[0]]
    return {f"{name}.{key}": value for name, state in inner.items() for key, value in state.items()}
