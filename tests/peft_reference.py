"""Hugging Face PEFT on timm's own models, beside which an adapter of ours is put."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import peft
import timm
import torch
import torch.nn.functional as F

from convert.adapters.peft import Adapter
from convert.base import Base
from mlx_peft.config.schema import Experiment
from mlx_peft.core.border import Tensors

PREFIX = "base_model.model."
EXPECTED = (
    "Unsupported layer type .*norm",  # of every norm that is timm's own
    "Failed to load the CUDA extension",  # of BOFT, which does without
    "Setting boft_n_butterfly_factor to 1",
    "Found missing adapter keys while .*randlora_",  # of what each layer shares: convert.adapters.randlora's note
    "The following rank_pattern keys did not match",  # it takes AdaLoRA's pattern for LoRA's at first, in its own too
)
"""What PEFT warns of though nothing is wrong. Else it warns of keys that it does not know or does not find."""


def timm_of(base: Base) -> torch.nn.Module:
    """timm's model with the base's tensors."""
    a, classes = base.architecture, len(base.tensors["head.weight"])
    sizes = {"depth": a.depth, "embed_dim": a.embed_dim, "num_heads": a.num_heads, "patch_size": a.patch_size}
    model = timm.create_model(base.name.partition(".")[0], num_classes=classes, img_size=a.img_size, **sizes)
    model.load_state_dict({name: torch.from_numpy(tensor.copy()) for name, tensor in base.tensors.items()})
    return model.eval()


def opened(base: Base, folder: Path, trainable: bool = False) -> torch.nn.Module:
    """PEFT's reading of an adapter on timm's model; what it warns of is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for message in EXPECTED:
            warnings.filterwarnings("ignore", message)
        return peft.PeftModel.from_pretrained(timm_of(base), str(folder), is_trainable=trainable).eval()


def logits(model: torch.nn.Module, inputs: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return model(inputs).numpy()


def gradients(model: torch.nn.Module, inputs: torch.Tensor, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Of the cross-entropy, by the names that an adapter's file has for them."""
    model.zero_grad()
    F.cross_entropy(model(inputs), torch.from_numpy(labels).long()).backward()
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            for part in (PREFIX, ".modules_to_save", ".default", ".ln_tuning_layers"):
                name = name.replace(part, "")
            found[name.replace("magnitude_vector.weight", "magnitude_vector")] = parameter.grad.numpy()
    return found


def adapter_of(experiment: Experiment, base: Base, tensors: Tensors, classes: tuple[str, ...]) -> Adapter:
    """What a run of the experiment would write."""
    return Adapter(
        method=experiment.method, tensors=tensors, classes=classes, model=experiment.model,
        architecture=base.architecture, preprocessing=base.preprocessing, base_sha256=base.sha256, source=base.source,
    )  # fmt: skip
