"""Models opened by their own libraries, to hold a conversion against: timm, torchvision, transformers, peft."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

from convert.adapters.abroad import rename
from convert.adapters.foreign import recognised
from convert.adapters.namings import OWN
from convert.adapters.peft import PREFIX, ROOT, WEIGHTS
from convert.adapters.targeting import named_out
from convert.base import Base
from convert.files import describe_safetensors, read_tensors, write_json, write_safetensors
from convert.layouts import torchvision, transformers
from convert.layouts.recognise import recognise
from convert.timm.config import timm_arguments
from mlx_peft.core.border import Tensors
from torch_ref.parameters import to_numpy

Features = Callable[[Tensor], Tensor]


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
    return _timm_of(base)


def timm_npz(path: Path, base: Base) -> Features:
    """What timm reads from Google's archive."""
    model = _timm(base)
    model.load_pretrained(str(path))
    return model


def torchvision_weights(path: Path, base: Base) -> Features:
    """torchvision's class, with a state dictionary that it loads itself."""
    file = path / "model.safetensors" if path.is_dir() else path
    return _torchvision(base, recognise(read_tensors(file), file)[1])


def transformers_folder(path: Path, base: Base) -> Features:
    """The class that the folder's ``config.json`` names; without a head, what one would read."""
    return _features(_transformers(path, base), base)


def _transformers(path: Path, base: Base) -> nn.Module:
    import transformers as library

    library.utils.logging.disable_progress_bar()
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    usual = "AutoModelForImageClassification" if "head.weight" in base.tensors else "AutoModel"
    [name, *_] = config.get("architectures") or [usual]
    return getattr(library, name).from_pretrained(path, dtype=torch.float32).eval()


def _features(model: nn.Module, base: Base) -> Features:
    """What a class of transformers computes of normalised images: logits, or what a head would read."""
    headed = "head.weight" in base.tensors
    texts = hasattr(model, "get_image_features")
    model = model if headed or texts else getattr(model, "vision_model", model)

    def features(images: Tensor) -> Tensor:
        if texts:  # the whole CLIP or SigLIP
            return model.get_image_features(pixel_values=images).pooler_output
        result = model(pixel_values=images)
        for key in ("logits", "image_embeds"):
            if key in result:
                return result[key]
        architecture = base.architecture
        if architecture.pre_norm or architecture.norm_after_pool or not architecture.class_token:
            return result.pooler_output  # CLIP's and SigLIP's towers, and BEiT
        return result.last_hidden_state[:, 0]

    return features


def peft_adapter(path: Path, base: Base) -> Features:
    """peft's model: an adapter on the class that its names are of, with the base's tensors.

    One with names that its library no longer has is opened under those of today. Expressions are not run by peft.
    """
    import peft

    names = [name.removeprefix(PREFIX) for name in describe_safetensors(path / WEIGHTS)[0]]
    naming = recognised(names, path)
    if naming is not None and naming.now is not None:
        with TemporaryDirectory() as folder:
            rename(path, Path(folder) / path.name, naming.now, base.architecture)
            return peft_adapter(Path(folder) / path.name, base)
    config = peft.PeftConfig.from_pretrained(path)
    layers = {match[1]: None for name in names if not name.startswith(ROOT) and (match := OWN.fullmatch(name))}
    modules = [naming.adapted(layer)[1] for layer in layers] if naming else list(layers)
    heads = {name.rpartition(".")[0]: None for name in names if not (name.startswith(ROOT) or OWN.fullmatch(name))}
    for field, value in named_out({**vars(config), "peft_type": config.peft_type.value}, modules, list(heads)).items():
        setattr(config, field, value)
    host, features = HOSTS["timm" if naming is None else naming.library]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of what peft calls in transformers
        # Of what layers share, and a file has once: convert.adapters.randlora says it to whoever writes one.
        warnings.filterwarnings("ignore", "Found missing adapter keys while .*randlora_[AB]")
        return features(peft.PeftModel.from_pretrained(host(base), path, config=config).eval(), base)


def _timm_of(base: Base) -> nn.Module:
    model = _timm(base)
    model.load_state_dict({name: torch.from_numpy(np.asarray(tensor)) for name, tensor in base.tensors.items()})
    return model


def _transformers_of(base: Base) -> nn.Module:
    """The class that a base is, with its tensors."""
    config, _, tensors = transformers.pack(base.architecture, base.preprocessing, base.tensors, ())
    with TemporaryDirectory() as folder:
        write_json(Path(folder) / transformers.CONFIG, config)
        write_safetensors(Path(folder) / transformers.WEIGHTS, tensors, {"format": "pt"})
        return _transformers(Path(folder), base)


def _torchvision_of(base: Base) -> nn.Module:
    return _torchvision(base, torchvision.pack(base.architecture, base.tensors))


def _torchvision(base: Base, tensors: Tensors) -> nn.Module:
    from torchvision.models import VisionTransformer

    a = base.architecture
    model = VisionTransformer(
        image_size=a.img_size, patch_size=a.patch_size, num_layers=a.depth, num_heads=a.num_heads,
        hidden_dim=a.embed_dim, mlp_dim=a.hidden_dim, num_classes=len(base.tensors["head.weight"]),
    )  # fmt: skip
    model.load_state_dict({name: torch.from_numpy(np.asarray(tensor)) for name, tensor in tensors.items()})
    return model


def _as_it_is(model: nn.Module, base: Base) -> Features:
    return model


HOSTS: dict[str, tuple[Callable[[Base], nn.Module], Callable[[nn.Module, Base], Features]]] = {
    "timm": (_timm_of, _as_it_is),
    "transformers": (_transformers_of, _features),
    "torchvision": (_torchvision_of, _as_it_is),
}
"""What an adapter is put on, by the library that its names are of: a model of a base, and what one computes."""

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
