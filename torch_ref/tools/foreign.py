"""Models opened by their own libraries, to hold a conversion against: timm, torchvision, transformers, peft."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from convert.adapters.peft import PREFIX, ROOT, WEIGHTS
from convert.adapters.targeting import named_out
from convert.base import Base
from convert.files import describe_safetensors, read_tensors
from convert.layouts.recognise import recognise
from convert.timm.config import timm_arguments
from mlx_peft.vit.parameters import HEADS, is_head
from torch_ref.parameters import to_numpy

Features = Callable[[Tensor], Tensor]

OWN = r"\.(lora|vera|ia3|ln_tuning)_\w+(\.\w+)?$"
"""What peft's methods put behind the name of the layer that a tensor of theirs belongs to."""


def timm_folder(path: Path, base: Base) -> Features:
    """A folder in timm's hub layout; without a head, its features."""
    import timm

    return timm.create_model(f"local-dir:{path}", pretrained=True, **_headless(base))


def timm_hub(path: Path, base: Base) -> Features:
    """timm's published weights, from the hub's cache; without a head, their features."""
    import timm

    return timm.create_model(base.name, pretrained=True, **_headless(base))


def timm_tensors(path: Path, base: Base) -> Features:
    """timm's own class of the base's name, with the base's tensors."""
    model = _timm(base)
    model.load_state_dict({name: torch.from_numpy(np.asarray(tensor)) for name, tensor in base.tensors.items()})
    return model


def timm_npz(path: Path, base: Base) -> Features:
    """What timm reads from Google's archive."""
    model = _timm(base)
    model.load_pretrained(str(path))
    return model


def torchvision_weights(path: Path, base: Base) -> Features:
    """torchvision's class, with a state dictionary that it loads itself."""
    from torchvision.models import VisionTransformer

    a = base.architecture
    file = path / "model.safetensors" if path.is_dir() else path
    model = VisionTransformer(
        image_size=a.img_size, patch_size=a.patch_size, num_layers=a.depth, num_heads=a.num_heads,
        hidden_dim=a.embed_dim, mlp_dim=a.hidden_dim, num_classes=len(base.tensors["head.weight"]),
    )  # fmt: skip
    _, tensors, _ = recognise(read_tensors(file), file)
    model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()})
    return model


def transformers_folder(path: Path, base: Base) -> Features:
    """The class that the folder's ``config.json`` names; without a head, what one would read."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    headed = "head.weight" in base.tensors
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    [name, *_] = config.get("architectures") or ["AutoModelForImageClassification" if headed else "AutoModel"]
    model = getattr(transformers, name).from_pretrained(path, dtype=torch.float32).eval()
    texts = hasattr(model, "get_image_features")
    model = model if headed or texts else getattr(model, "vision_model", model)

    def features(images: Tensor) -> Tensor:
        if texts:  # the whole CLIP or SigLIP
            return model.get_image_features(pixel_values=images).pooler_output
        result = model(pixel_values=images)
        for key in ("logits", "image_embeds"):
            if key in result:
                return result[key]
        if base.architecture.pre_norm or not base.architecture.class_token:  # CLIP's and SigLIP's towers
            return result.pooler_output
        return result.last_hidden_state[:, 0]

    return features


def peft_adapter(path: Path, base: Base) -> Features:
    """peft's model: an adapter on timm's class, with the base's tensors; its expressions are not run by peft."""
    import peft

    config = peft.PeftConfig.from_pretrained(path)
    names = [name.removeprefix(PREFIX) for name in describe_safetensors(path / WEIGHTS)[0]]
    heads = [head for head in HEADS if f"{head}.weight" in names]
    layers = sorted({re.sub(OWN, "", name) for name in names if not (is_head(name) or name.startswith(ROOT))})
    for field, value in named_out({**vars(config), "peft_type": config.peft_type.value}, layers, heads).items():
        setattr(config, field, value)
    return peft.PeftModel.from_pretrained(timm_tensors(path, base), path, config=config)


OPENERS: dict[str, Callable[[Path, Base], Features]] = {
    "timm folder": timm_folder,
    "timm hub": timm_hub,
    "timm": timm_tensors,
    "npz": timm_npz,
    "torchvision": torchvision_weights,
    "transformers": transformers_folder,
    "peft": peft_adapter,
}
"""What there is to open, by the way of opening it."""


@torch.inference_mode()
def logits(opener: str, path: Path, base: Base, images: np.ndarray) -> np.ndarray:
    """What a library computes for images, float32 ``(batch, classes)``; without a head, the features it would read.

    Args:
        opener: one of OPENERS.
        path: what it opens.
        base: what we made of it: it says how images are normalised, and what the file does not.
        images: uint8 ``(batch, size, size, 3)``.

    Raises:
        ImportError: where the library is not installed.
    """
    model = OPENERS[opener](path, base)
    if isinstance(model, nn.Module):
        model.eval()
    mean, std = (torch.tensor(value) for value in (base.preprocessing.mean, base.preprocessing.std))
    pixels = (torch.from_numpy(images).float() / 255 - mean) / std
    return to_numpy(model(pixels.permute(0, 3, 1, 2)))


def _headless(base: Base) -> dict[str, int]:
    """timm's arguments for a model whose head we left out, which timm would load."""
    return {} if "head.weight" in base.tensors else {"num_classes": 0}


def _timm(base: Base) -> nn.Module:
    import timm

    classes = len(base.tensors.get("head.weight", ()))
    name = base.name.partition(".")[0]
    arguments = {"img_size": base.architecture.img_size, **timm_arguments(base.architecture, name)}
    return timm.create_model(name, num_classes=classes, **arguments)
