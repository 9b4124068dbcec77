"""Reducers that only tests have, for either backend: what a block has a place for; and timm's gradients beside ours."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import torch  # before MLX: see mlx_peft.backend.blas
import torch.nn.functional as F

# isort: split
import mlx.core as mx

import mlx_peft.backend.models.reducer
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
ROUNDING = 2e-5
"""Relative, float32: the same sums in another order, through a backward pass."""

LEFT = np.stack([np.random.default_rng(image).permutation(16)[:9] for image in range(4)])
"""Of the 16 patches of four images: which a reducer leaves, in which order."""


class Ours:
    """What the classes below compute with, in MLX."""

    reducer = mlx_peft.backend.models.reducer.Reducer
    array = staticmethod(mx.array)

    @staticmethod
    def numpy(x: Any) -> np.ndarray:
        return np.array(x)

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

    reducer = torch_ref.models.reducer.Reducer
    array = staticmethod(torch.from_numpy)

    @staticmethod
    def numpy(x: Any) -> np.ndarray:
        return x.detach().numpy()

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


def pixels(trainer: Any, images: np.ndarray) -> torch.Tensor:
    """Images as timm's model takes them: normalised, channels first."""
    preprocessing = trainer.model.base.preprocessing
    x = (torch.from_numpy(images) / 255 - torch.tensor(preprocessing.mean)) / torch.tensor(preprocessing.std)
    return x.permute(0, 3, 1, 2)


def same_gradients(
    trainer: Any, reference: torch.nn.Module, images: np.ndarray, targets: np.ndarray, rounding: float = ROUNDING
) -> None:
    """Holds the gradients of everything that a trainer trains against those of timm's model with the same weights."""
    F.cross_entropy(reference(pixels(trainer, images)), torch.from_numpy(targets).long()).backward()
    expected = {name: parameter.grad.numpy() for name, parameter in reference.named_parameters()}
    _, found = trainer.loss_and_gradients(images, targets)
    assert found.keys() == expected.keys()
    scale = max(np.abs(gradient).max() for gradient in expected.values())
    for name, gradient in expected.items():
        np.testing.assert_allclose(found[name], gradient, rtol=0, atol=rounding * scale, err_msg=name)


def block(trainer: Any, number: int) -> Any:
    """A block of the model itself, whatever a method put around it."""
    found = trainer.model.network.blocks[number]
    return found.base_layer if "base_layer" in dict(found.named_modules()) else found
