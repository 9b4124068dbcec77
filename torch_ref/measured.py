"""What the checks measure of a step: what it keeps in memory, and parts of it on their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from mlx_peft.config.schema import Precision
from mlx_peft.vit.architecture import Preprocessing
from torch_ref.device import DTYPES, device, multiplying, synchronize
from torch_ref.models.preprocess import preprocess

if TYPE_CHECKING:
    from torch_ref.trainer import Trainer


def saved_bytes(trainer: Trainer, images: np.ndarray, targets: np.ndarray) -> int | None:
    """Bytes of activations that a step's forward pass keeps for its backward one; None where they cannot be counted."""
    trainer.model.network.train()
    return kept_bytes(lambda: trainer.loss_of(images, targets, len(targets)), trainer.model.network.parameters())


def kept_bytes(forward: Callable[[], Tensor], parameters: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages that autograd keeps of ``forward`` for its backward pass, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in parameters}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no storage is freed and its address used again while we count

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(kept.values())


def step_bytes(trainer: Trainer, step: Callable[[], object]) -> int:
    """Bytes that arrays hold at once, at most, while a step of a trainer runs: all that it has, and what it makes."""
    if device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        synchronize()
        return torch.cuda.max_memory_allocated()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the profiler is told of no array of another thread
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            step()
    finally:
        torch.set_num_threads(threads)
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    made = max(accumulate((size for _, size in changes), initial=0))
    network, state = trainer.model.network, trainer.update.state().values()
    held = {array.untyped_storage().data_ptr(): array.nbytes for array in (*network.buffers(), *state)}
    return made + sum(p.nbytes for p in network.parameters()) + sum(held.values())


def multiply(batch: int, m: int, k: int, n: int, precision: Precision = "float32") -> Callable[[], None]:
    """For benchmarks: a function that computes one ``(batch, m, k) @ (batch, k, n)`` and waits for it."""
    where = {"device": device(), "dtype": DTYPES[precision]}
    a, b = torch.randn(batch, m, k, **where), torch.randn(batch, k, n, **where)

    def product() -> None:
        with multiplying(precision):
            torch.matmul(a, b)
        synchronize()

    return product


def resizing(images: np.ndarray, preprocessing: Preprocessing, size: int) -> Callable[[], None]:
    """For benchmarks: a function that makes a batch of uint8 images a model's input and waits for it."""

    def prepare() -> None:
        preprocess(torch.from_numpy(images).to(device()), preprocessing, size, torch.float32)
        synchronize()

    return prepare
