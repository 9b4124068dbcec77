"""LoRA of ours and of PEFT's on one small model of timm's."""

from __future__ import annotations

import dataclasses

import numpy as np
import peft_reference
import torch

from convert.adapters.peft import Adapter
from convert.base import Base, load_base
from mlx_peft.config.methods import LoRA
from mlx_peft.config.schema import Model
from mlx_peft.vit.registry import find

LOGITS = 1e-5
"""Relative; float32, with W + s B A formed on one side only."""

SIZES = {"depth": 2, "embed_dim": 24, "num_heads": 3}
CLASSES = ("cat", "dog", "emu")


def base_of(name: str) -> tuple[Model, Base]:
    scales = {"init_values": 0.5} if find(name).architecture.init_values else {}  # so that a block's answer counts
    model = Model(name=name, weights="none", image_size=64, args=SIZES | scales)  # type: ignore[arg-type]
    return model, load_base(model, len(CLASSES), seed=1)


def trained(model: Model, base: Base, method: LoRA) -> Adapter:
    """What a trainer would hand over, with random numbers in it."""
    random = np.random.default_rng(0)
    tensors = {}
    for site in method.sites(base.architecture):
        rank, norms = method.rank_of(site.path), np.linalg.norm(base.tensors[f"{site.path}.weight"], axis=1)
        for A, B in filter(None, (("lora_A", "lora_B"), method.start_kept)):
            tensors[f"{site.path}.{A}"] = random.normal(0, 0.2, (max(len(site.parts), 1) * rank, site.inputs))
            tensors[f"{site.path}.{B}"] = random.normal(0, 0.2, (site.adapted, rank))
        if method.dora:
            adapted = np.concatenate([norms[rows] for rows in site.rows])
            tensors[f"{site.path}.lora_magnitude_vector"] = adapted * random.uniform(0.5, 1.5, len(adapted))
            if len(site.parts) in (1, 2):
                thirds = dict(zip("qkv", np.split(norms, 3), strict=True))
                rest = [third for part, third in thirds.items() if part not in site.parts]
                tensors[f"{site.path}.lora_magnitude_rest"] = np.concatenate(rest)
    tensors |= {name: random.normal(0, 0.2, t.shape) for name, t in base.tensors.items() if name.startswith("head")}
    held = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    return Adapter(
        method=method, tensors=held, classes=CLASSES, model=model, architecture=base.architecture,
        preprocessing=base.preprocessing, base_sha256=base.sha256, source=base.source,
    )  # fmt: skip


def logits(model: torch.nn.Module) -> np.ndarray:
    torch.manual_seed(0)
    return peft_reference.logits(model, torch.randn(2, 3, 64, 64))


def merged(base: Base, adapter: Adapter) -> Base:
    """With the weights by the papers, each part of qkv on its own: V = W + s (B A - B0 A0), and with DoRA m V / |V|."""
    method, held = adapter.method, {name: tensor.astype(np.float64) for name, tensor in adapter.tensors.items()}
    assert isinstance(method, LoRA)
    tensors = base.tensors | {name: tensor for name, tensor in adapter.tensors.items() if name.startswith("head")}
    for site in method.sites(base.architecture):
        W, count = tensors[f"{site.path}.weight"].astype(np.float64), max(len(site.parts), 1)
        factors = [held.get(f"{site.path}.{name}") for name in ("lora_A", "lora_B", *(method.start_kept or ("", "")))]
        split = [[0.0] * count if factor is None else np.split(factor, count) for factor in factors]
        m = np.split(held.get(f"{site.path}.lora_magnitude_vector", np.zeros(site.adapted)), count)
        for index, rows in enumerate(site.rows):
            A, B, A0, B0 = (factor[index] for factor in split)
            W[rows] += method.scaling_of(site.path) * (B @ A - (B0 @ A0 if method.start_kept else 0))
            if method.dora:
                W[rows] *= (m[index] / np.linalg.norm(W[rows], axis=1))[:, None]
        tensors[f"{site.path}.weight"] = W.astype(np.float32)
    return dataclasses.replace(base, tensors=tensors)
