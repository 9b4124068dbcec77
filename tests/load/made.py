"""What the load test serves and sends: a hundred random adapters of one random ViT-Ti at 64 px, photographs, and what
the offline bank says of each photograph by each adapter.

    python tests/load/made.py WORK

What is there is not made again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

# isort: split
import torch_ref
from convert.adapters.peft import Adapter, write_adapter
from convert.base import Base, load_base
from mlx_peft.adaptation.adapter import adapter_shapes
from mlx_peft.config.methods import IA3, SSF, AdaptFormer, Linear, LoRA, MethodConfig
from mlx_peft.config.schema import Model
from mlx_peft.data import eval_image
from mlx_peft.tasks.registry import classification
from mlx_peft.vit.parameters import last

NAME, SIZE = "vit_tiny_patch16_224", 64
ADAPTERS, GUESTS, PHOTOS = 100, 8, 32
"""Guests are loaded and let go while others are asked; they are asked too."""

METHODS: tuple[MethodConfig, ...] = (
    LoRA(rank=4),
    LoRA(rank=8),
    LoRA(rank=16),
    LoRA(rank=8, targets=("all-linear",)),
    LoRA(rank=2, targets=("q", "v")),
    LoRA(rank=16, targets=("qkv",), blocks=tuple(range(6, 12))),
    LoRA(rank=4, dora=True),
    IA3(),
    SSF(),
    AdaptFormer(bottleneck=8),
    Linear(),
)
"""Dealt out in turn: most of them LoRA, as in the wild."""

NEAR_ONE = {"ia3_l", "ssf_scale", "lora_magnitude_vector", "adapter_scale"}


def names() -> list[str]:
    return [f"clinic-{n:03d}" for n in range(ADAPTERS)] + [f"guest-{n}" for n in range(GUESTS)]


def description() -> Model:
    return Model(name=NAME, weights="none", image_size=SIZE)


def adapter(base: Base, seed: int) -> Adapter:
    """One whose numbers are drawn, as if it were trained: two to twelve classes, each fifth of several labels."""
    random, classes, method = np.random.default_rng(seed), 2 + seed % 11, METHODS[seed % len(METHODS)]
    tensors = {}
    for name, shape in adapter_shapes(method, base.architecture, classes, None).items():
        start = 1.0 if last(name) in NEAR_ONE and not name.startswith("head") else 0.0
        tensors[name] = (start + 0.05 * random.standard_normal(shape)).astype(np.float32)
    return Adapter(
        method=method, tensors=tensors, classes=tuple(f"finding {n}" for n in range(classes)), model=description(),
        architecture=base.architecture, preprocessing=base.preprocessing, base_sha256=base.sha256, source=base.source,
        task=classification(seed % 5 == 4),
    )  # fmt: skip


def photo(seed: int) -> Image.Image:
    """Smooth colours with noise in them, of a photograph's proportions."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(
        (160, 120), Image.Resampling.BICUBIC
    )
    noisy = np.array(coarse, np.int16) + random.integers(-20, 21, (120, 160, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def make(work: Path) -> None:
    """Adapters in ``adapters/``, photographs in ``photos/``, and ``expected.npz``; ``made.json`` says what they are."""
    if (work / "made.json").exists():
        return
    base = load_base(description(), 1, 0)
    for seed, name in enumerate(names()):
        write_adapter(work / "adapters" / name, adapter(base, seed))
    (work / "photos").mkdir(parents=True, exist_ok=True)
    for seed in range(PHOTOS):
        photo(seed).save(work / "photos" / f"{seed:02d}.jpg", quality=90)
    np.savez(work / "expected.npz", **expected(work, base))
    (work / "made.json").write_text(json.dumps({"names": names(), "photos": PHOTOS}))


def expected(work: Path, base: Base) -> dict[str, np.ndarray]:
    """Of all photographs: by each adapter's name the probabilities, ``(photos, classes)``; by ``features/NAME`` what
    its head reads, ``(photos, dim)``; ``features/`` is the bare base's."""
    network = torch_ref.create_model(NAME, weights="none", num_classes=1, image_size=SIZE)
    bank = torch_ref.load_adapters(network, work / "adapters")
    files = sorted((work / "photos").iterdir())
    pixels = np.stack([eval_image(file, base.preprocessing, SIZE) for file in files])
    found = {"features/": bank.features(pixels, [None] * len(pixels))}
    for name in bank.names:
        task = bank[name].adapter.task
        found[name] = np.stack([task.probabilities(logits) for logits in bank.logits(pixels, name)])
        found[f"features/{name}"] = bank.features(pixels, name)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path)
    make(parser.parse_args().work)
