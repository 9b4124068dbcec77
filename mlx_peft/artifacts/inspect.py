"""What a checkpoint on disk is, as far as it says so itself."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert.adapters import lora_vit
from convert.adapters.peft import WEIGHTS as ADAPTER
from convert.adapters.peft import Adapter, read_adapter
from convert.checkpoint import Checkpoint
from convert.files import describe_safetensors, is_sealed
from convert.kinds import kind_of
from convert.layouts.layout import Asked
from convert.open import open_path
from convert.problem import written
from convert.pth import describe_pth
from mlx_peft.artifacts.place import find_adapter
from mlx_peft.config.quantization import described
from mlx_peft.core.errors import UserError
from mlx_peft.training.run import RunFolder
from mlx_peft.training.whereabouts import adapter_in
from mlx_peft.vit.parameters import is_head
from mlx_peft.vit.shapes import shapes


def inspect(path: Path) -> dict[str, Any]:
    """A report on a file, a model's folder, a run or an adapter: plain values, for JSON.

    Raises:
        UserError: where there is nothing, or what is there is damaged or of no known kind.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.is_dir() and (adapter_in(path) or RunFolder(path).config.exists()):
        place = find_adapter(path, None)
        return _adapter(read_adapter(place), "adapter" if place == path else "run", path, place / ADAPTER)
    if lora_vit.is_one(path):
        return _adapter(lora_vit.read(path)[0], "adapter", path, path)
    try:
        checkpoint = open_path(path, Asked())
    except UserError as error:
        stored = _stored(path)
        if not stored:
            raise
        return {"path": str(path), "kind": "tensors", **stored, "undecided": str(error)}
    stored = _stored(path) or _in_memory(checkpoint)
    return {"path": str(path), **_model(checkpoint), **stored, "parameters": _parameters(checkpoint)}


def _model(checkpoint: Checkpoint) -> dict[str, Any]:
    tensors = checkpoint.tensors or {}
    usual = type(checkpoint.architecture)()
    return {
        "kind": checkpoint.layout,
        "model": checkpoint.name,
        "architecture": {
            key: value
            for key, value in checkpoint.architecture.model_dump(mode="json").items()
            if value != getattr(usual, key) or key in ("img_size", "patch_size", "embed_dim", "depth", "num_heads")
        },
        "classes": len(tensors.get("head.weight", ())),
        "class_names": list(checkpoint.classes),
        **written(checkpoint.task),
        "preprocessing": checkpoint.preprocessing and checkpoint.preprocessing.model_dump(mode="json"),
        "quantization": None if checkpoint.quantization is None else described(checkpoint.quantization),
        "notes": list(checkpoint.notes),
    }


def _parameters(checkpoint: Checkpoint) -> int:
    """Of the model, also where its weights are in codes."""
    tensors = checkpoint.tensors or {}
    wanted = shapes(checkpoint.architecture, len(tensors.get("head.weight", ())))
    sizes = {name: tensor.size for name, tensor in tensors.items() if tensor.dtype != np.uint32}
    codes = {name for name, tensor in tensors.items() if tensor.dtype == np.uint32}
    extra = {f"{name.removesuffix('.weight')}.{kind}" for name in codes for kind in ("scales", "biases")}
    return sum(size for name, size in sizes.items() if name not in extra) + sum(math.prod(wanted[n]) for n in codes)


def _adapter(adapter: Adapter, kind: str, path: Path, file: Path) -> dict[str, Any]:
    method = adapter.method.model_dump(mode="json")
    counts = Counter({"head": 0, "adapter": 0})
    for name, tensor in adapter.tensors.items():
        counts["head" if is_head(name) else "frozen" if adapter.method.keeps(name) else "adapter"] += tensor.size
    return {
        "path": str(path),
        "kind": kind,
        **({"over": adapter.over} if adapter.over else {}),
        "method": method.pop("name"),
        "rank": next((method[key] for key in ("rank", "init_rank") if key in method), None),
        "options": method,
        "model": None if adapter.model is None else adapter.model.name,
        "trained_on": adapter.source,
        "base_sha256": adapter.base_sha256,
        "quantization": None if adapter.quantize is None else described(adapter.quantize),
        "classes": adapter.num_classes,
        "class_names": list(adapter.classes),
        **({} if adapter.origin is None else {"combined": adapter.origin.model_dump(mode="json")}),
        **written(adapter.task),
        "parameters_of": dict(counts),
        "preprocessing": adapter.preprocessing and adapter.preprocessing.model_dump(mode="json"),
        **_stored(file),
    }


def _stored(path: Path) -> dict[str, Any]:
    """The tensors as they lie in safetensors files, or in one of PyTorch's; nothing for other files."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    entries: dict[str, tuple[str, tuple[int, ...]]] = {}
    for file in files:
        kind = kind_of(file)
        if kind == "safetensors":
            entries |= describe_safetensors(file)[0]
        elif kind == "torch":
            entries |= describe_pth(file)
    if not entries:
        return {}
    return {
        "tensors": len(entries),
        "parameters": sum(math.prod(shape) for _, shape in entries.values()),
        "dtypes": dict(Counter(dtype for dtype, _ in entries.values())),
        "bytes": sum(file.stat().st_size for file in files),
        "digest": "right" if all(kind_of(file) == "safetensors" and is_sealed(file) for file in files) else "none",
    }


def _in_memory(checkpoint: Checkpoint) -> dict[str, Any]:
    """The same of an archive of arrays, which were read as float32."""
    tensors: Mapping[str, np.ndarray] = checkpoint.tensors or {}
    path = Path(checkpoint.source)
    return {
        "tensors": len(tensors),
        "parameters": sum(tensor.size for tensor in tensors.values()),
        "bytes": path.stat().st_size if path.is_file() else None,
    }
