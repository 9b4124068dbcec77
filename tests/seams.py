"""Relative positions and reducers that only tests have, for either backend: what a block has places for."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import torch  # before MLX: see mlx_peft.backend.blas

# isort: split
import mlx.core as mx

import mlx_peft.backend.models.positions
import mlx_peft.backend.models.reducer
import torch_ref.models.positions
import torch_ref.models.reducer

SMALL = {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
MODELS = {
    "plain": {"args": SMALL},
    "distilled": {"name": "deit_tiny_distilled_patch16_224", "args": SMALL},
    "average pooling": {"args": SMALL | {"global_pool": "avg", "reg_tokens": 2}},
    "average over all tokens": {"args": SMALL | {"global_pool": "avg", "reg_tokens": 2, "pool_include_prefix": True}},
    "attention pooling without a class token": {"name": "vit_base_patch16_siglip_224", "args": SMALL},
    "layer scale and registers": {"name": "vit_small_patch14_reg4_dinov2", "args": SMALL},
}
"""Of every way in which patches are read at the end, on images of 32 px."""
LEFT = np.stack([np.random.default_rng(image).permutation(16)[:9] for image in range(4)])
"""Of the 16 patches of four images: which a reducer leaves, in which order."""


class Ours:
    """What the classes below compute with, in MLX."""

    positions, reducer = mlx_peft.backend.models.positions.Positions, mlx_peft.backend.models.reducer.Reducer
    array = parameter = staticmethod(mx.array)

    @staticmethod
    def numpy(x: Any) -> np.ndarray:
        return np.array(x)

    @staticmethod
    def join(parts: list, axis: int) -> Any:
        return mx.concatenate(parts, axis=axis)

    @staticmethod
    def order(x: Any) -> Any:
        """The places of the values from the least on."""
        return mx.argsort(x, axis=1)

    @staticmethod
    def sorted(x: Any) -> Any:
        return mx.sort(x, axis=1)

    @staticmethod
    def repeated(x: np.ndarray, batch: int) -> Any:
        return mx.broadcast_to(mx.array(x), (batch, *x.shape))


class Theirs(Ours):
    """The same, in PyTorch."""

    positions, reducer = torch_ref.models.positions.Positions, torch_ref.models.reducer.Reducer
    array = staticmethod(torch.from_numpy)

    @staticmethod
    def numpy(x: Any) -> np.ndarray:
        return x.detach().numpy()

    @staticmethod
    def parameter(x: np.ndarray) -> Any:
        return torch.nn.Parameter(torch.from_numpy(x))

    @staticmethod
    def join(parts: list, axis: int) -> Any:
        return torch.cat(parts, dim=axis)

    @staticmethod
    def order(x: Any) -> Any:
        return torch.argsort(x, dim=1, stable=True)

    @staticmethod
    def sorted(x: Any) -> Any:
        return torch.sort(x, dim=1).values

    @staticmethod
    def repeated(x: np.ndarray, batch: int) -> Any:
        return torch.from_numpy(x).expand(batch, *x.shape)


def of(backend: ModuleType | object) -> type[Ours]:
    """The framework of a trainer."""
    return Ours if type(backend).__module__.startswith("mlx_peft") else Theirs


def relative(trainer: Any, table: np.ndarray) -> Any:
    """Swin's and BEiT's: to the score of two patches a number is added that their distance chooses, a head its own.

    Args:
        table: ``(heads, (2 grid - 1)^2)``.
    """
    here, side = of(trainer), trainer.model.base.architecture.grid_size
    row, column = (place[:, None] - place for place in np.divmod(np.arange(side**2), side))
    distance = (row + side - 1) * (2 * side - 1) + column + side - 1  # (grid^2, grid^2)

    class Relative(here.positions):
        def bias(self, attention: Any, tokens: Any, queries: Any) -> Any:
            batch, special = tokens.x.shape[0], len(tokens.places) - tokens.places.count("patch")
            every = here.repeated(np.arange(side**2), batch)
            asked, asking = (every if t.indices is None else t.indices for t in (tokens, queries))
            found = self.table[:, here.array(distance)[asking[:, :, None], asked[:, None, :]]].swapaxes(0, 1)
            none = here.array(np.zeros((*found.shape[:2], found.shape[2], special), np.float32))
            found = here.join([none, found], axis=3)
            none = here.array(np.zeros((*found.shape[:2], special, found.shape[3]), np.float32))
            return here.join([none, found], axis=2)

    positions = Relative(trainer.model.base.architecture, None)
    positions.table = here.parameter(table)
    return positions


def dropping(trainer: Any, which: np.ndarray) -> Any:
    """A reducer that keeps the patch tokens ``which (batch, n)``."""
    here = of(trainer)

    class Drop(here.reducer):
        def __call__(self, tokens: Any, attended: Any) -> Any:
            return tokens.gathered(here.array(which)) if tokens.places.count("patch") else tokens

    return Drop()


def attentive(trainer: Any, count: int) -> Any:
    """A reducer that keeps the ``count`` patch tokens of which the class token took most, in their order."""
    here = of(trainer)

    class Attentive(here.reducer):
        def __call__(self, tokens: Any, attended: Any) -> Any:
            if not tokens.places.count("patch"):
                return tokens
            taken = attended.probabilities(attended.asking.span("class"))[..., attended.asked.span("patch")]
            taken = taken.mean(1)[:, 0]
            return tokens.gathered(here.sorted(here.order(-taken)[:, :count]))

    return Attentive()


def merging(trainer: Any) -> Any:
    """A reducer that makes one patch token of two neighbours: their mean by size. The first's place is the pair's."""
    here = of(trainer)

    class Merge(here.reducer):
        def __call__(self, tokens: Any, attended: Any) -> Any:
            count = tokens.places.count("patch")
            if not count:
                return tokens
            patches, batch = tokens.x[:, tokens.places.span("patch")], tokens.x.shape[0]
            sizes = here.repeated(np.ones(count, np.float32), batch) if tokens.sizes is None else tokens.sizes
            indices = here.repeated(np.arange(count), batch) if tokens.indices is None else tokens.indices
            weighted = (patches * sizes[..., None]).reshape(batch, count // 2, 2, -1).sum(2)
            total = sizes.reshape(batch, count // 2, 2).sum(2)
            return tokens.reduced(weighted / total[..., None], indices[:, ::2], total)

    return Merge()


def gradient(trainer: Any, x: np.ndarray) -> np.ndarray:
    """Of the sum of squared logits for the table of the positions, in training; x as it enters the model."""
    model = trainer.model.network.train()
    if of(trainer) is Ours:
        model.freeze()
        model.positions.unfreeze()

        def squares(parameters: dict) -> mx.array:
            model.update(parameters)
            return (model(mx.array(x)) ** 2).sum()

        return np.array(mx.grad(squares)(model.trainable_parameters())["positions"]["table"])
    model.requires_grad_(False)
    model.positions.requires_grad_(True)
    return torch.autograd.grad((model(torch.from_numpy(x)) ** 2).sum(), model.positions.table)[0].numpy()


def block(trainer: Any, number: int) -> Any:
    """A block of the model itself, whatever a method put around it."""
    found = trainer.model.network.blocks[number]
    return found.base_layer if "base_layer" in dict(found.named_modules()) else found
