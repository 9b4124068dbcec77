"""Small images on their way into the model: resized inside the step as Pillow would have resized them outside."""

from __future__ import annotations

import numpy as np
import pytest
import torch  # before MLX: see mlx_peft.backend.blas
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image

# isort: split
import mlx.core as mx

import mlx_peft.backend.entry
import torch_ref.entry
from convert.base import load_base
from mlx_peft.backend.models import preprocess as mlx_side
from mlx_peft.config.schema import Experiment
from mlx_peft.data.recipe import FILTERS, eval_image
from mlx_peft.vit.architecture import Preprocessing
from torch_ref.models import preprocess as torch_side

SIZE = 224


def resized(backend: str, images: np.ndarray, interpolation: str, size: int) -> np.ndarray:
    """The input of a model in levels of 0..255, before its normalisation."""
    plain = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), interpolation=interpolation)
    if backend == "mlx":
        found = np.array(mlx_side.preprocess(mx.array(images), plain, size, mx.float32))
    else:
        found = torch_side.preprocess(torch.from_numpy(images), plain, size, torch.float32).numpy()
    levels = found * 255
    assert np.abs(levels - np.rint(levels)).max() < 1e-3
    return np.rint(levels).astype(int)


def pictures(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A photograph, noise, and black and white checks, on which bicubic weights overshoot most."""
    rng = np.random.default_rng(seed)
    photograph = Image.fromarray(load_sample_image("china.jpg")).resize((width, height))
    checks = 255 * rng.integers(0, 2, (height, width, 3))
    return np.stack([np.asarray(photograph), rng.integers(0, 256, (height, width, 3)), checks]).astype(np.uint8)


def by_pillow(images: np.ndarray, interpolation: str, size: int) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(i).resize((size, size), FILTERS[interpolation])) for i in images])


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("sides", [range(8, 97, 8), pytest.param(range(8, 97), marks=pytest.mark.slow)], ids=str)
def test_every_size_from_8_to_96_is_resized_to_pillows_very_pixels(sides: range, interpolation: str) -> None:
    for side in sides:
        images = pictures(side, 104 - side, seed=side)
        expected = by_pillow(images, interpolation, SIZE)
        for backend in ("mlx", "torch"):
            assert np.array_equal(resized(backend, images, interpolation, SIZE), expected), (backend, side)


@settings(max_examples=25)
@given(
    size=st.tuples(st.integers(1, 130), st.integers(1, 130)),
    target=st.integers(1, 130),
    interpolation=st.sampled_from(list(FILTERS)),
    seed=st.integers(0, 2**16),
)
def test_any_size_is_resized_to_any_other_up_or_down(
    size: tuple[int, int], target: int, interpolation: str, seed: int
) -> None:
    height, width = size
    # Else Pillow takes the columns first (from version 13 on), and rounds what lies between the passes otherwise.
    assume(height <= target or height - target <= 2 * (width - target))
    images = pictures(height, width, seed=seed)
    expected = by_pillow(images, interpolation, target)
    for backend in ("mlx", "torch"):
        assert np.array_equal(resized(backend, images, interpolation, target), expected)


def trainer(backend: str, size: int = 32):
    experiment = Experiment.model_validate(
        {
            "model": {
                "name": "vit_tiny_patch16_224",
                "weights": "none",
                "image_size": size,
                "args": {"patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3},
            },
            "method": {"name": "linear"},
            "data": {"name": "digits", "batch_size": 4},
        }
    )
    module = {"mlx": mlx_peft.backend.entry, "torch": torch_ref.entry}[backend]
    return module.build_trainer(experiment, 5, load_base(experiment.model, 5, 0))


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_a_model_sees_stored_pixels_as_the_evaluation_recipe_shows_a_file_of_them(backend: str) -> None:
    model = trainer(backend).model
    images = pictures(12, 10)
    recipe = model.base.preprocessing.model_copy(update={"crop_pct": 1.0, "crop_mode": "squash"})
    prepared = np.stack([eval_image(image, recipe, 32) for image in images])
    np.testing.assert_array_equal(model.logits(images), model.logits(prepared))


def test_a_step_is_compiled_once_for_a_stored_size(monkeypatch: pytest.MonkeyPatch, compiled: None) -> None:
    traced = []
    original = mlx_peft.backend.model.preprocess
    monkeypatch.setattr(
        mlx_peft.backend.model,
        "preprocess",
        lambda images, *rest: traced.append(images.shape) or original(images, *rest),
    )
    one = trainer("mlx")
    targets = np.array([0, 1, 2, 3], np.int32)
    for side in (12, 12, 12, 32, 12, 32):
        images = np.full((4, side, side, 3), side, np.uint8)
        float(one.train_step(images, targets, 1e-3))
    assert traced == [(4, 12, 12, 3), (4, 32, 32, 3)]
