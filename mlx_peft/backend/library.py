"""The library: models and adapters in a notebook. ``torch_ref`` has the same names, so an import changes backend."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlx_peft.backend import methods, parameters
from mlx_peft.backend.methods import merge, unmerge
from mlx_peft.backend.models.preprocess import preprocess
from mlx_peft.backend.models.vit import VisionTransformer
from mlx_peft.backend.parameters import every, fill, stored, to_tensors
from mlx_peft.library.framework import Framework
from mlx_peft.library.library import Library

__all__ = [
    "add_adapter",
    "create_model",
    "load_adapter",
    "merge",
    "prepare",
    "remove_adapter",
    "save_adapter",
    "state_dict",
    "unmerge",
]

_library = Library(
    Framework(
        build=VisionTransformer,
        fill=fill,
        apply=methods.apply,
        remove=methods.remove,
        every=lambda model: to_tensors(every(model)),
        stored=lambda model: to_tensors(stored(model)),
        load_adapter=parameters.load_adapter,
    )
)

create_model = _library.create_model
add_adapter = _library.add_adapter
remove_adapter = _library.remove_adapter
save_adapter = _library.save_adapter
load_adapter = _library.load_adapter
state_dict = _library.state_dict


def prepare(model: VisionTransformer, images: np.ndarray) -> mx.array:
    """uint8 images ``(batch, h, w, 3)`` as the model's input, normalised as its weights want them."""
    return preprocess(mx.array(images), model.base.preprocessing, model.architecture.img_size, mx.float32)
