"""Small models with VeRA, (IA)^3 or LayerNorm tuning in them, of either backend and of PEFT."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import peft
import torch  # before MLX: see mlx_peft.backend.blas
from peft_reference import adapter_of, timm_of
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

# isort: split

import mlx_peft.backend.entry
import torch_ref.entry
from convert.adapters.peft import Adapter, read_adapter
from convert.base import load_base
from mlx_peft.config.schema import Experiment

LOGITS, GRADIENTS = 1e-5, 1e-4
"""Relative; float32, weights formed on one side only, and twice as many operations for a gradient."""

BACKENDS = {"mlx": mlx_peft.backend.entry, "torch": torch_ref.entry}
DEIT = "deit_tiny_patch16_224"
SIZES = {"depth": 2, "embed_dim": 24, "num_heads": 3}
CLASSES = ("cat", "dog", "emu")
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
LABELS = np.array([2, 0], np.int32)
EVERYWHERE = r".*blocks\.\d+\..*\."


def build(backend: str, method: dict, name: str = DEIT):
    """A trainer, on weights none of which are zero or one: so biases and norms matter."""
    experiment = Experiment.model_validate(
        {
            "model": {"name": name, "weights": "none", "image_size": 64, "args": SIZES},
            "method": method,
            "data": {"name": "digits"},
            "train": {"label_smoothing": 0},
        }
    )
    base = load_base(experiment.model, len(CLASSES), 1)
    base = dataclasses.replace(base, tensors=moved(base.tensors, 0.1))
    return BACKENDS[backend].build_trainer(experiment, len(CLASSES), base), base


def written(trainer) -> Adapter:
    return adapter_of(trainer.experiment, trainer.model.base, trainer.model.adapter(), CLASSES)


def moved(tensors: dict[str, np.ndarray], size: float = 0.3) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    return {n: t + size * random.standard_normal(t.shape).astype(np.float32) for n, t in sorted(tensors.items())}


VERA = {"name": "vera", "rank": 8}
IA3 = {"name": "ia3"}


def own(gradient: np.ndarray, name: str, method) -> np.ndarray:
    """PEFT's gradient of a whole layer's tensor, as that of what is trained here."""
    parts = [part for part in "qkv" if part in getattr(method, "targets", ())]
    adapter = not name.startswith("head")
    if adapter and name.endswith("lambda_d") and parts:
        copies = [*parts, "whole"]
        rows = gradient.reshape(-1, method.rank)
        wanted = parts if ".qkv." in name else ["whole"]
        return rows[[copies.index(copy) for copy in wanted]].ravel()
    gradient = gradient if "ia3_l" not in name else gradient.ravel()
    if adapter and ".qkv." in name and parts:
        return gradient.reshape(3, -1)[["qkv".index(part) for part in parts]].ravel()
    return gradient


def reread(backend: str, base, folder: Path, name: str = DEIT):
    """A trainer that holds the adapter of a folder that PEFT wrote, and the adapter."""
    adapter = read_adapter(folder)
    assert adapter.model is None
    trainer, _ = build(backend, adapter.method.model_dump(), name)
    trainer.model.load_adapter(adapter.tensors)
    return trainer, adapter


def trained_by_peft(config: peft.PeftConfig, folder: Path, frozen: str = "-"):
    """PEFT's model with random numbers in the adapter and its head, saved; and the base. ``frozen`` stays as it was."""
    _, base = build("torch", {"name": "linear"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(timm_of(base), config).eval()
        torch.manual_seed(0)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if p.requires_grad and frozen not in name:
                    p.add_(torch.randn(p.shape), alpha=0.3)
        model.save_pretrained(folder)
    return model, base


def rewritten(folder: Path, change) -> None:
    """Changes the tensors of an adapter on disk; its metadata stays, but for the digest that would tell."""
    path = folder / "adapter_model.safetensors"
    with safe_open(path, framework="numpy") as file:
        metadata = {key: value for key, value in (file.metadata() or {}).items() if key != "digest"}
    tensors = load_file(path)
    change(tensors)
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path, metadata)


A, B = "base_model.vera_A", "base_model.vera_B"
D = "base_model.model.blocks.0.attn.qkv.vera_lambda_d"
