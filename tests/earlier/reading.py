"""What is said of a version's files: the logits of all that answers, and how the machine rounds that makes them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch  # before MLX, or it gets the wrong BLAS
import torch.nn.functional as F

from mlx_peft import prepare  # noqa: F401 - with it MLX is loaded, and what it multiplies with
from mlx_peft.artifacts.load import load_model, load_run
from mlx_peft.artifacts.place import is_model

BACKENDS = ("torch", "mlx")
ANSWERING = ("adapters", "finished", "models")


def answering(version: Path) -> list[str]:
    """The files that give logits, by their place: ``adapters/lora``."""
    return [f"{kind}/{folder.name}" for kind in ANSWERING for folder in sorted((version / kind).iterdir())]


def logits(path: Path, backend: str, images: np.ndarray) -> np.ndarray:
    """What a model, an adapter or a finished run says of images."""
    opened = load_model(path, backend) if is_model(path) else load_run(path, backend)
    return opened.model.logits(images)


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order, however many processors there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def torch_rounds() -> str:
    """A digest of what this processor and build of torch make of the operations of a model, and of their gradients.

    Where it is the same, another logit or parameter is the work of other code.
    """
    draw = torch.Generator().manual_seed(0)
    with one_thread(), torch.random.fork_rng():
        torch.manual_seed(0)
        tokens = torch.rand(128, 5, 32, generator=draw)
        square, wide = (torch.rand(size, 32, generator=draw).requires_grad_() for size in (32, 96))
        queries = (
            F.linear(F.layer_norm(tokens, (32,)), wide, wide[:, 0]).reshape(128, 5, 3, 2, 16).permute(2, 0, 3, 1, 4)
        )
        mixed = F.scaled_dot_product_attention(*queries).transpose(1, 2).reshape(tokens.shape)
        found = F.dropout(F.gelu(F.linear(mixed + F.silu(tokens), square)) @ square[:, :10].detach(), 0.1)
        loss = F.cross_entropy(found.mean(1), torch.arange(128) % 10) + torch.linalg.norm(square)
        gradients = torch.autograd.grad(loss, (square, wide))
        results = (found, loss, *gradients, *(g / (g * g).sqrt().add(1e-8) for g in gradients))
        return digest([result.detach().numpy() for result in results])


def mlx_rounds() -> str:
    """The same of MLX."""
    import mlx.core as mx
    import mlx.nn as nn

    key = mx.random.key(0)
    tokens, square, wide = (mx.random.uniform(shape=shape, key=key) for shape in ((128, 5, 32), (32, 32), (96, 32)))

    def loss(square: mx.array, wide: mx.array) -> mx.array:
        normed = mx.fast.layer_norm(tokens, None, None, 1e-6)
        queries = mx.addmm(wide[:, 0], normed, wide.T).reshape(128, 5, 3, 2, 16).transpose(2, 0, 3, 1, 4)
        mixed = mx.fast.scaled_dot_product_attention(*queries, scale=0.25).transpose(0, 2, 1, 3).reshape(tokens.shape)
        found = nn.gelu((mixed + nn.silu(tokens)) @ square.T) * mx.random.bernoulli(0.9, tokens.shape, key)
        return nn.losses.cross_entropy(found.mean(1), mx.arange(128) % 10, reduction="mean") + mx.linalg.norm(square)

    value, gradients = mx.value_and_grad(loss, (0, 1))(square, wide)
    results = (value, *gradients, *(g / (mx.sqrt(g * g) + 1e-8) for g in gradients))
    return digest([np.array(result) for result in results])


def digest(arrays: list[np.ndarray]) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


ROUNDS = {"torch": torch_rounds, "mlx": mlx_rounds}
