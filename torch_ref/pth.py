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


def read_pth(path: Path, container: str | None = None) -> dict[str, np.ndarray]:
    """The tensors of a state dictionary as float32, out of the containers that may hold it; mapped where they can be.

    Args:
        container: which one is meant, where there are several.

    Raises:
        UserError: where the file is damaged, would have run code, is larger inside than outside (compressed, or tensors
            that repeat a few bytes: torch writes neither, and a small file could fill the memory), holds several
            models, or anything else than tensors by name.
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

    content = _inside(content, container, path)
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


def _inside(content: Any, container: str | None, path: Path) -> Any:
    """The state dictionary inside of what training code keeps around it.

    Raises:
        UserError: where there are several and none is named, or none of the name.
    """
    seen: list[str] = []
    while isinstance(content, dict):
        found = [name for name in CONTAINERS if isinstance(content.get(name), dict)]
        if container in found:
            found, container = [container], None
        if len(found) > 1:
            raise UserError(f"{path}: it holds several models: say which with --container {' or '.join(found)}")
        if not found:
            break
        seen.append(found[0])
        content = content[found[0]]
    if container is not None and container not in seen:
        held = f"only {' and '.join(seen)}" if seen else "a state dictionary alone"
        raise UserError(f"{path}: no container {container!r} in it, {held}")
    return content
