"""Folders of adapters of every method over one small base, and what each of them answers alone."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

# isort: split
import mlx_peft
import mlx_peft.backend.methods
import mlx_peft.backend.models.vit
import mlx_peft.backend.parameters
import torch_ref
import torch_ref.methods
import torch_ref.models.vit
import torch_ref.parameters
from convert.adapters.parts import adapted, others
from convert.adapters.peft import Adapter, read_adapter, write_adapter
from convert.base import Base, load_base
from mlx_peft.adaptation.adapter import adapter_shapes
from mlx_peft.adaptation.factors import row_norms
from mlx_peft.adaptation.projections import bases, projections
from mlx_peft.config.methods import (
    IA3,
    SSF,
    VPT,
    AdaLoRA,
    AdapterPlus,
    AdaptFormer,
    BitFit,
    FacT,
    Houlsby,
    LayerNorm,
    Linear,
    LoHa,
    LoKr,
    LoRA,
    MethodConfig,
    MiSS,
    PVeRA,
    QALoRA,
    RandLoRA,
    RepAdapter,
    VeRA,
)
from mlx_peft.config.quantization import Quantization
from mlx_peft.config.schema import Model
from mlx_peft.tasks.registry import classification
from mlx_peft.vit.parameters import last
from mlx_peft.vit.sites import PARTS, widths

SIDES: dict[str, ModuleType] = {"mlx": mlx_peft, "torch": torch_ref}
INSIDE = {
    "mlx": (mlx_peft.backend.models.vit.VisionTransformer, mlx_peft.backend.parameters, mlx_peft.backend.methods),
    "torch": (torch_ref.models.vit.VisionTransformer, torch_ref.parameters, torch_ref.methods),
}

SIZE = 32
ARGS = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
CODES = Quantization(bits=4, group_size=32)

SAME = 1e-5
"""The same sums in another order: a few roundings of float32 (6e-8) a layer. Logits are about 1."""

NEAR_ONE = {"ia3_l", "ssf_scale", "weight", "lora_magnitude_vector", "adapter_scale"}
"""The last names of tensors of which a model that works has numbers around 1."""

METHODS: dict[str, list[MethodConfig]] = {
    "linear": [Linear()],
    "lora": [
        LoRA(rank=2, targets=("all-linear",)),
        LoRA(rank=5, alpha=3, targets=("q", "v"), rslora=True),
        LoRA(rank=16, targets=("qkv",), blocks=(0,)),
        LoRA(rank=3, targets=("qkv", "fc2"), dora=True, blocks=(1,)),
        LoRA(rank=2, targets=("k", "proj"), dora=True, init="pissa", rank_pattern={"proj": 4}),
        LoRA(rank=4, targets=("mlp",), init="pissa", blocks=(0,)),
        LoRA(rank=4, targets=("v",), init="pissa"),
        LoRA(rank=2, targets=("q", "k"), dora=True),
        LoRA(rank=2, targets=("v", "fc1"), init="olora"),
    ],
    "adalora": [
        AdaLoRA(init_rank=4, target_rank=2),
        AdaLoRA(init_rank=3, target_rank=2, targets=("q", "v", "fc1")),
    ],
    "vera": [VeRA(rank=4, targets=("all-linear",)), VeRA(rank=7, projection_key=1), VeRA(rank=3, targets=("k", "fc2"))],
    "pvera": [PVeRA(rank=5, targets=("q", "v", "fc1")), PVeRA(rank=3, targets=("proj",), blocks=(1,))],
    "randlora": [RandLoRA(rank=10, alpha=10), RandLoRA(rank=32, alpha=24, targets=("mlp",), blocks=(0,))],
    "fact": [FacT(rank=3, scale=0.5), FacT(rank=5, blocks=(0,))],
    "loha": [LoHa(rank=2, targets=("all-linear",)), LoHa(rank=9, alpha=15, targets=("v", "fc1"), blocks=(1,))],
    "lokr": [LoKr(rank=2), LoKr(rank=3, decompose_both=True, factor=16, targets=("fc2",)), LoKr(rank=40, blocks=(0,))],
    "miss": [MiSS(rank=8, targets=("q", "v", "fc1")), MiSS(rank=24), MiSS(rank=16, mini=32, targets=("qkv",))],
    "ia3": [IA3(), IA3(targets=("q", "proj", "fc1"), feedforward=("fc1",)), IA3(targets=("qkv",), blocks=(1,))],
    "ssf": [SSF(), SSF(blocks=(1,))],
    "bitfit": [BitFit(), BitFit(blocks=(0,))],
    "layernorm": [LayerNorm(), LayerNorm(blocks=(1,))],
    "adaptformer": [AdaptFormer(bottleneck=6), AdaptFormer(bottleneck=3, scale=0.5, blocks=(1,))],
    "adapter_plus": [AdapterPlus(bottleneck=5), AdapterPlus(bottleneck=3, blocks=(0,))],
    "houlsby": [Houlsby(bottleneck=4), Houlsby(bottleneck=6, norms=False, blocks=(1,))],
    "repadapter": [RepAdapter(bottleneck=4, dropout=0), RepAdapter(bottleneck=8, groups=4, scale=0.5, blocks=(0,))],
    "vpt": [VPT(tokens=3), VPT(tokens=2, deep=True), VPT(tokens=3, blocks=(0,)), VPT(tokens=2, blocks=(1,), deep=True)],
}
"""Of each method that mixes: other ranks, targets, blocks and scalings."""

OVER_CODES: dict[str, list[MethodConfig]] = METHODS | {
    "qalora": [
        QALoRA(rank=3, targets=("all-linear",)),
        QALoRA(rank=5, pool="avg", targets=("k", "proj")),
        QALoRA(rank=2, targets=("q", "v")),
    ]
}
"""The same over a quantised base."""


@cache
def base_of(quantize: Quantization | None = None, **args: Any) -> Base:
    """Its weights."""
    name = "deit_tiny_distilled_patch16_224" if args.get("distilled") else "vit_tiny_patch16_224"
    description = Model(name=name, weights="none", image_size=SIZE, args=ARGS | args)
    return load_base(description, 5, 0, quantize)


@cache
def network(side: str, quantize: Quantization | None = None, **args: Any) -> Any:
    """What a notebook has before it opens a bank: one for all tests, since a bank leaves it as it is."""
    name = "deit_tiny_distilled_patch16_224" if args.get("distilled") else "vit_tiny_patch16_224"
    return SIDES[side].create_model(
        name, weights="none", num_classes=5, image_size=SIZE, args=ARGS | args, quantize=quantize
    )


def adapter(base: Base, method: MethodConfig, seed: int, classes: int = 3, multi_label: bool = False) -> Adapter:
    """An adapter whose numbers are drawn: as if it were trained."""
    random = np.random.default_rng(seed)
    tensors = {}
    for name, shape in adapter_shapes(method, base.architecture, classes, base.quantization).items():
        start = 1.0 if last(name) in NEAR_ONE and not name.startswith("head") and len(shape) == 1 else 0.0
        tensors[name] = (start + 0.1 * random.standard_normal(shape)).astype(np.float32)
    for name in (name for name in tensors if last(name) == "lora_magnitude_rest"):  # rows that are not adapted
        parts = np.split(row_norms(base.tensors[name.replace("lora_magnitude_rest", "weight")]), len(PARTS))
        tensors[name] = np.concatenate([parts[PARTS.index(part)] for part in others(adapted(method.targets))])
    if isinstance(method, VeRA | PVeRA):
        shape = widths(method.sites(base.architecture))
        A, B = projections(method.projection_key, method.rank, *shape, method.halves)
        tensors |= {f"shared.{method.name}_A": A, f"shared.{method.name}_B": B}
    if isinstance(method, RandLoRA):
        A, B = bases(method, *method.widths(base.architecture))
        tensors |= {"shared.randlora_A": A, "shared.randlora_B": B}
    return Adapter(
        method=method, tensors=tensors, classes=tuple(f"class {i}" for i in range(classes)),
        model=Model(name=base.name, weights="none", image_size=SIZE), architecture=base.architecture,
        preprocessing=base.preprocessing, base_sha256=base.sha256, source=base.source, quantize=base.quantization,
        task=classification(multi_label),
    )  # fmt: skip


def folder_of(methods: list[MethodConfig], folder: Path, base: Base) -> dict[str, Adapter]:
    """Adapters of these methods, written, by name: heads of two to eight rows, each third of several labels."""
    found = {}
    for number, method in enumerate(methods):
        name = f"{number:02d}-{method.name}"
        found[name] = adapter(base, method, number, classes=2 + number % 7, multi_label=number % 3 == 0)
        write_adapter(folder / name, found[name])
    return found


def alone(side: str, base: Base, own: Adapter, images: np.ndarray) -> np.ndarray:
    """The logits of a model with one adapter in it, put there by the method itself: no bank has a hand in it."""
    build, parameters, methods = INSIDE[side]
    model = build(base.architecture, own.num_classes)
    without = {name: tensor for name, tensor in base.tensors.items() if not name.startswith("head")}
    parameters.fill(model, replace(base, tensors=without))
    methods.apply(model, own.method, 0)
    parameters.load_adapter(model, own.tensors)
    model.base = base
    model.eval()
    return model.logits(images)


def pixels(count: int, seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def rewritten(folder: Path, **changes: Any) -> None:
    """Writes an adapter again with other fields."""
    write_adapter(folder, replace(read_adapter(folder), **changes))


def edited(file: Path, **changes: Any) -> None:
    """A JSON file with other values, as another program would leave it: its digest with it."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    (file.parent / "SHA256SUMS").unlink(missing_ok=True)


def arrays(side: str, model: Any) -> dict[str, Any]:
    """A network's parameters by name."""
    return INSIDE[side][1].every(model)
