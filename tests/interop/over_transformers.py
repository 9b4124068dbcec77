"""peft's adapters over transformers' models with random weights, and the names that version 4 had for their layers."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from foreign_models import SIZE, SMALL, pixels, shaken
from safetensors.numpy import load_file, save_file

from convert.layouts.layout import Asked
from convert.layouts.naming import DECISIVE
from convert.open import open_path
from mlx_peft.artifacts.load import Loaded, load_run
from mlx_peft.config.schema import Model

META = {key: value for key, value in SMALL.items() if key != "intermediate_size"} | {"mlp_ratio": 2}
CLASSES: dict[str, Any] = {"id2label": {0: "cat", 1: "dog", 2: "emu"}}


def _whole(config: type, text: type) -> Any:
    small = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "vocab_size": 50}
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    return config(vision_config=SMALL, text_config=text(**small, **tokens), **CLASSES)


FAMILIES = {
    "vit": ("ViTForImageClassification", lambda: transformers.ViTConfig(**SMALL, **CLASSES)),
    "deit": ("DeiTForImageClassification", lambda: transformers.DeiTConfig(**SMALL, **CLASSES)),
    "dinov2": ("Dinov2ForImageClassification", lambda: transformers.Dinov2Config(**META, **CLASSES)),
    "dinov2 with registers": (
        "Dinov2WithRegistersForImageClassification",
        lambda: transformers.Dinov2WithRegistersConfig(**META, **CLASSES, num_register_tokens=3),
    ),
    "clip": (
        "CLIPForImageClassification", lambda: _whole(transformers.CLIPConfig, transformers.CLIPTextConfig),
    ),
    "siglip": (
        "SiglipForImageClassification", lambda: _whole(transformers.SiglipConfig, transformers.SiglipTextConfig),
    ),
}  # fmt: skip
"""The class of each family that classifies images, and a small configuration."""

GATED = "dinov2 with swiglu"
EVERY = FAMILIES | {
    GATED: (
        "Dinov2ForImageClassification",
        lambda: transformers.Dinov2Config(**META, **CLASSES, use_swiglu_ffn=True),
    )
}
"""The same with one whose MLP has its first layer in halves under version 5."""

BERT_4 = {"attention.q_proj": "attention.attention.query", "attention.k_proj": "attention.attention.key",
          "attention.v_proj": "attention.attention.value", "attention.o_proj": "attention.output.dense"}  # fmt: skip
VIT_4 = {"vit.layers": "vit.encoder.layer", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
NAMES_4: dict[str, dict[str, str]] = {
    "vit": BERT_4 | VIT_4,
    "deit": BERT_4 | VIT_4 | {"deit.layers": "deit.encoder.layer"},
    "dinov2": BERT_4,
    "dinov2 with registers": BERT_4,
    "clip": {},
    "siglip": {},
}
"""What version 4 called the layers that version 5 calls so, as files of both show."""


@dataclass(frozen=True)
class Family:
    """A model of transformers', and the folder that it was saved in."""

    name: str
    folder: Path

    def model(self) -> torch.nn.Module:
        """The model anew: peft changes the one that it is given."""
        kind = getattr(transformers, EVERY[self.name][0])
        return kind.from_pretrained(self.folder, dtype=torch.float32).eval()

    @property
    def named(self) -> Model:
        """The same as ours are told."""
        found = open_path(self.folder, Asked())
        fields = found.architecture.model_dump()
        return Model(
            name=found.name, weights=str(self.folder), args={key: fields[key] for key in DECISIVE if key in fields}
        )

    def load(self, adapter: Path, backend: str) -> Loaded:
        return load_run(adapter, backend, model=self.named)  # type: ignore[arg-type]


def saved(name: str, folder: Path) -> Family:
    """A family's model with random weights, on disk."""
    kind, config = EVERY[name]
    torch.manual_seed(0)
    shaken(getattr(transformers, kind)(config())).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return Family(name, folder)


def trained(model: torch.nn.Module, config: peft.PeftConfig) -> torch.nn.Module:
    """peft's model, whose adapter has random numbers as if it were trained."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of timm-like norms and tied weights, of which there are none
        model = peft.get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def reopened(model: torch.nn.Module, adapter: Path) -> torch.nn.Module:
    """An adapter as peft reads it: a key that it does not know, or does not find, is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing")
        warnings.filterwarnings("ignore", "Unsupported layer type .*LayerNorm")  # of every norm, which it adapts
        warnings.filterwarnings("ignore", "The following rank_pattern keys did not match")  # AdaLoRA's, in its own too
        warnings.filterwarnings("ignore", "Failed to load the CUDA|Setting boft_n_butterfly")  # BOFT, without CUDA
        warnings.filterwarnings("ignore", "Found missing adapter keys while .*randlora_")  # of what each layer shares
        return peft.PeftModel.from_pretrained(model, str(adapter)).eval()


def logits(model: torch.nn.Module) -> np.ndarray:
    """Of ``pixels``, which ViTImageProcessor normalises by a half and a half."""
    inputs = ((torch.from_numpy(pixels()) / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)
    with torch.no_grad():
        result = model(pixel_values=inputs)
    return result.logits.numpy()


def as_version_4(adapter: Path, name: str) -> None:
    """An adapter under the names that version 4 would have saved it with, in its file and its configuration."""
    names = NAMES_4[name]

    def older(text: str) -> str:
        for new, old in names.items():
            text = re.sub(rf"(?<![\w]){re.escape(new)}(?!\w)", old, text)
        return text

    file = adapter / "adapter_model.safetensors"
    save_file({older(key): tensor for key, tensor in load_file(file).items()}, file, {"format": "pt"})
    config = json.loads((adapter / "adapter_config.json").read_text())
    last = {new.rpartition(".")[2]: old.rpartition(".")[2] for new, old in names.items()}
    for field in ("target_modules", "feedforward_modules"):
        if isinstance(config.get(field), list):
            config[field] = [last.get(target, target) for target in config[field]]
    for field in ("rank_pattern", "alpha_pattern"):
        config[field] = {last.get(key, older(key)): value for key, value in (config.get(field) or {}).items()}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
