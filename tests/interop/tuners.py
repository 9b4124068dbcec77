"""Small models with methods in them that Hugging Face PEFT has too, of either backend and of PEFT."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import peft
import torch
from peft_reference import timm_of

# isort: split

from interop.vera_ia3 import DEIT, build, moved, written

from convert.adapters.copies import WHOLE, copied
from convert.adapters.parts import taken
from convert.adapters.peft import write_adapter
from mlx_peft.vit.sites import PARTS

SIZES = {"depth": 2, "embed_dim": 24, "num_heads": 3}
"""Of the models: widths of 24, 72 and 96."""

EVERYWHERE = r".*blocks\.\d+\..*\."


def ours(backend: str, method: dict, folder: Path, name: str = DEIT):
    """A trainer with numbers in its adapter, which lies in a folder; its base, and the logits' reference of before."""
    trainer, base = build(backend, method, name)
    trainer.model.load_adapter(moved(trainer.model.adapter()))
    write_adapter(folder, written(trainer))
    return trainer, base


def added(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """What PEFT has put into a model and trains, heads left out, by the names that an adapter's file has for them."""
    return {
        name.replace("base_model.model.", "").replace(".default", ""): p.detach().numpy()
        for name, p in model.named_parameters()
        if p.requires_grad and "modules_to_save" not in name
    }


def begun(config: peft.PeftConfig, base) -> dict[str, np.ndarray]:
    """What PEFT's own model begins with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        return added(peft.get_peft_model(timm_of(base), config))


def same_beginning(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether both are equal, or were drawn from the same uniform distribution about 0, as far as they tell.

    Of n numbers the largest falls short of the bound by about 1/n of it: five times that is let pass.
    """
    if np.array_equal(one, other):
        return True
    ends = np.abs(one).max(), np.abs(other).max()
    return one.std() > 0 and other.std() > 0 and abs(ends[0] / ends[1] - 1) < 5 / one.size + 1e-3


def own(gradients: dict[str, np.ndarray], key: str, method) -> np.ndarray:
    """Of PEFT's gradients that of what is trained here under a name."""
    layer, _, last = key.rpartition(".")
    found = gradients[f"{layer}.oft_R.weight" if last == "oft_R" else key]
    parts = tuple(part for part in PARTS if part in method.targets)
    if last == "pvera_lambda_d" and parts:
        copies = copied(method.targets)
        wanted = [copies.index(part) for part in (parts if layer.endswith(".qkv") else (WHOLE,))]
        return found.reshape(2, len(copies), -1)[:, wanted].swapaxes(0, 1).ravel()
    if not parts or not layer.endswith(".qkv") or last.endswith(("w1_b", "w2_b")):
        return found
    if last.startswith("hada"):
        return taken(found, parts)
    axis = 1 if last == "miss_block" else 0
    thirds = dict(zip(PARTS, np.split(found, len(PARTS), axis), strict=True))
    return np.concatenate([thirds[part] for part in parts], axis)
