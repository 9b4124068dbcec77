"""A model out into a folder in timm's hub layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from convert.base import Base
from convert.files import write_json, write_safetensors
from convert.problem import written
from convert.timm.config import CONFIG, OURS, WEIGHTS, timm_arguments
from mlx_peft.config.quantization import Quantization
from mlx_peft.core.errors import UserError
from mlx_peft.core.writing import new_folder
from mlx_peft.vit.shapes import heads


def write_model(
    folder: Path,
    *,
    base: Base,
    tensors: Mapping[str, np.ndarray],
    classes: Sequence[str] = (),
    quantization: Quantization | None = None,
    dtype: str = "float32",
    exactly: bool = False,
) -> None:
    """Writes a whole model that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` and ``load_base`` open.

    Args:
        base: what the model was made from: name, architecture, preprocessing, task, and tokens, which timm passes over.
        tensors: timm's state dictionary.
        classes: names, in the order of the head's rows; none where they are unknown.
        quantization: of the tensors; timm cannot open such a model.
        dtype: of the weights that are not quantised.
        exactly: write what timm has no words for in words of our own; timm refuses such a folder.

    Raises:
        UserError: where the folder exists and holds files, cannot be written, or timm has no words for the model.
    """
    name, _, tag = base.name.partition(".")
    architecture, preprocessing = base.architecture, base.preprocessing
    classifier = heads(architecture)
    num_classes = len(tensors.get("head.weight", ()))
    arguments, exact = {}, {}
    try:
        arguments = timm_arguments(architecture, name)
    except UserError:
        if not exactly:
            raise
        exact = {"exact_architecture": architecture.model_dump(mode="json")}
    config = {
        "architecture": OURS + name if exact else name,
        "num_classes": num_classes,
        "num_features": architecture.feature_dim,
        "global_pool": architecture.global_pool,
        **({"label_names": list(classes)} if classes else {}),
        **written(base.task),
        **({"model_args": arguments} if arguments else {}),
        **exact,
        **({"quantization": quantization.model_dump(mode="json")} if quantization else {}),
        **({"tokens": base.tokens.model_dump(mode="json")} if base.tokens else {}),
        "pretrained_cfg": {
            **({"tag": tag} if tag else {}),
            "custom_load": False,
            "input_size": [3, architecture.img_size, architecture.img_size],
            "fixed_input_size": True,
            **preprocessing.model_dump(mode="json"),
            "num_classes": num_classes,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": classifier[0] if len(classifier) == 1 else list(classifier),
        },
    }
    with new_folder(folder) as new:
        write_json(new / CONFIG, config)
        write_safetensors(new / WEIGHTS, tensors, dtype=dtype)
