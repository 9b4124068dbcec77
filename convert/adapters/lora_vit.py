"""Old LoRA-ViT files, as the public tool of 2023 saved them (https://github.com/JamesQFreeman/LoRA-ViT, ``lora.py``).

One safetensors file: ``w_a_000`` and ``w_b_000`` are of q in the first block, ``w_a_001`` and ``w_b_001`` of v there,
then of the second block, and so on; ``fc_768in_10out`` is the weight of the head. It does not say its alpha: the tool
had none in 2023 and added B A as it is, and since 2024 adds it ``alpha // rank`` times. Nor has it the bias of the
head, which the tool does not save: it is zero here. Its pairs are taken for those of all blocks: of fewer, it does not
say which.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from convert.adapters.peft import Adapter
from convert.files import describe_safetensors, listed, read_safetensors
from convert.kinds import kind_of
from mlx_peft.config.methods import LoRA
from mlx_peft.core.border import Tensors
from mlx_peft.core.errors import UserError

FIRST = "w_a_000"
FACTOR = re.compile(r"w_([ab])_(\d{3})")
HEAD = re.compile(r"fc_(\d+)in_(\d+)out")
TITLE = "LoRA-ViT's file"


def is_one(path: Path) -> bool:
    """Whether a path is such a file. Raises UserError where it is a damaged one."""
    return path.is_file() and kind_of(path) == "safetensors" and FIRST in describe_safetensors(path)[0]


def read(path: Path, alpha: int | None = None) -> tuple[Adapter, list[str]]:
    """The adapter that a file is, and notes on what it does not say.

    Args:
        alpha: what the tool was given; None: none, as in 2023.

    Raises:
        UserError: where tensors are missing, unknown, or of shapes that contradict each other.
    """
    tensors, _ = read_safetensors(path)
    if odd := sorted(name for name in tensors if not (FACTOR.fullmatch(name) or HEAD.fullmatch(name))):
        raise UserError(f"{path}: these tensors are none of {TITLE}: {listed(odd)}")
    count = sum(name.startswith("w_a_") for name in tensors)
    wanted = [f"w_{kind}_{index:03d}" for index in range(count + count % 2) for kind in "ab"]
    if odd := sorted({*wanted} ^ {name for name in tensors if FACTOR.fullmatch(name)}):
        raise UserError(
            f"{path}: it should have a w_a and a w_b of q and of v for each block, counted from 000: {listed(odd)}"
        )
    rank, dim = _sizes(tensors, wanted, path)
    scale = 1 if alpha is None else alpha // rank
    if scale < 1:
        raise UserError(
            f"{path}: alpha {alpha} is below the rank {rank}, with which LoRA-ViT adds nothing", arguments=("alpha",)
        )
    found = _head(tensors, dim, path)
    for block in range(count // 2):
        own = [f"{2 * block + part:03d}" for part in range(2)]
        layer = f"blocks.{block}.attn.qkv"
        found[f"{layer}.lora_A"] = np.concatenate([tensors[f"w_a_{index}"] for index in own])
        found[f"{layer}.lora_B"] = np.concatenate([tensors[f"w_b_{index}"] for index in own])
    method = LoRA(rank=rank, alpha=scale * rank, targets=("q", "v"))
    adapter = Adapter(
        method=method, tensors=found, classes=(), model=None, architecture=None, preprocessing=None, base_sha256=None,
        source="unknown", over=TITLE,
    )  # fmt: skip
    said = "as LoRA-ViT of 2023 does" if alpha is None else f"alpha {alpha} // rank {rank}, as LoRA-ViT does"
    return adapter, [
        f"{path}: B A is added {scale} times, {said}: the file does not say its alpha",
        f"{path}: LoRA-ViT saves no bias of the head, which is zero here",
    ]


def _sizes(tensors: Tensors, names: list[str], path: Path) -> tuple[int, int]:
    """The rank and the model's width. Raises UserError where the factors do not agree in them."""
    first = tensors[FIRST].shape
    for name in names:
        shape = tensors[name].shape
        if len(first) != 2 or 0 in first or shape != (first if name.startswith("w_a") else first[::-1]):
            raise UserError(
                f"{path}: every w_a should be (rank, width) and every w_b (width, rank), but {FIRST} is {first} and "
                f"{name} {shape}"
            )
    return first[0], first[1]


def _head(tensors: Tensors, dim: int, path: Path) -> Tensors:
    """The head, with a bias of zeros. Raises UserError where there is none, or several, or one of another width."""
    heads = [(name, match) for name in tensors if (match := HEAD.fullmatch(name))]
    if len(heads) != 1:
        names = listed(name for name, _ in heads) or "none"
        raise UserError(f"{path}: it should have one head, fc_{dim}in_CLASSESout, not {names}")
    [(name, match)] = heads
    weight = tensors[name]
    if weight.shape != (int(match[2]), dim) or int(match[1]) != dim or not len(weight):
        raise UserError(f"{path}: {name} has the shape {weight.shape}, and the model has the width {dim}")
    return {"head.weight": weight, "head.bias": np.zeros(len(weight), np.float32)}
