"""What a model is called elsewhere: the nearest of timm's names, and the nearest of transformers' classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from foreign_models import SMALL

from convert.layouts import transformers as layout
from convert.layouts.layout import Asked
from convert.open import open_path
from mlx_peft.core.errors import UserError
from mlx_peft.vit.architecture import Preprocessing
from mlx_peft.vit.registry import find

MODELS: dict[str, Any] = {
    "dinov3": (transformers.DINOv3ViTModel, lambda: transformers.DINOv3ViTConfig(**SMALL, num_register_tokens=4)),
    "dinov3 with swiglu": (
        transformers.DINOv3ViTModel,
        lambda: transformers.DINOv3ViTConfig(**SMALL, use_gated_mlp=True, hidden_act="silu"),
    ),
    "beit": (transformers.BeitModel, lambda: transformers.BeitConfig(**SMALL, use_relative_position_bias=True)),
}


def test_what_asks_for_no_weights_may_be_set_to_what_the_class_has() -> None:
    """timm's DINOv3 averages the patches; transformers', without a classifier, gives the class token."""
    recipe = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    architecture = find("vit_small_patch16_dinov3").architecture
    with pytest.raises(UserError, match="no global_pool: avg; with global_pool=token it is one, of the same weights"):
        layout.pack(architecture, recipe, {}, ())


@pytest.mark.parametrize("case", MODELS)
def test_the_nearest_name_is_of_the_same_class_of_timms(case: str, tmp_path: Path) -> None:
    """Only such a one can be told what else the model is: a small ViT's name cannot be told of rotary positions."""
    model, config = MODELS[case]
    model(config()).save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    found = open_path(tmp_path, Asked())
    assert found.architecture.family == find(found.name).architecture.family != "vit"


def test_of_a_classifier_that_a_class_lacks_the_class_is_named() -> None:
    dinov3 = find("vit_small_patch16_dinov3").architecture
    recipe = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    tensors = {"head.weight": np.ones((2, 384), np.float32), "head.bias": np.ones(2, np.float32)}
    with pytest.raises(UserError, match="model: DINOv3ViTModel is it without its classifier; the nearest with one, "):
        layout.pack(dinov3, recipe, tensors, ())
