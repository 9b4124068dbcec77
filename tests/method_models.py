"""Models of either backend with a method in them: small and random, the method's tensors moved from their start."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import torch  # before MLX: see mlx_peft.backend.blas

# isort: split
import mlx.core as mx
from mlx.utils import tree_flatten

import mlx_peft.backend.parameters as mlx_parameters
import torch_ref.parameters as torch_parameters
from convert.base import load_base
from mlx_peft.backend import methods as mlx_methods
from mlx_peft.backend import training as mlx_training
from mlx_peft.backend.models.vit import VisionTransformer as MlxModel
from mlx_peft.backend.quant.affine import QuantizedLinear as MlxQuantized
from mlx_peft.config.methods import Method
from mlx_peft.config.quantization import QAT, Quantization
from mlx_peft.config.schema import Model
from mlx_peft.vit.parameters import is_head
from torch_ref import methods as torch_methods
from torch_ref import training as torch_training
from torch_ref.models.vit import VisionTransformer as TorchModel
from torch_ref.quant.affine import QuantizedLinear as TorchQuantized

KINDS = {kind.model_fields["name"].default: kind for kind in get_args(get_args(Method)[0])}
"""The methods' configurations by name."""

CLASSES, GROUP = 5, 32
SIZES = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}


class Mlx:
    """What a test does to models of one backend."""

    methods, parameters, model = mlx_methods, mlx_parameters, MlxModel
    Quantized = MlxQuantized
    array, copied = staticmethod(mx.array), staticmethod(mlx_parameters.to_timm)

    def stored(self, model):
        """What an adapter is made of, as NumPy in timm's layout."""
        return mlx_parameters.to_tensors(model, mlx_parameters.stored(model))

    def answers(self, model, pixels):
        """Logits."""
        return np.array(model(mx.array(pixels)))

    def half(self, array):
        return mx.array(array).astype(mx.bfloat16)

    def floats(self, array):
        return np.array(array.astype(mx.float32))

    def all(self, layer):
        """Parameters by name."""
        return dict(tree_flatten(layer.parameters()))

    def trained(self, layer):
        """Those that are trained."""
        return dict(tree_flatten(layer.trainable_parameters()))

    def stepped(self, model, experiment):
        """What is trained, after a step of the experiment's optimiser from gradients of 0."""
        parameters = self.trained(model)
        update = mlx_training.Update(experiment.train, parameters, experiment.rates)
        zeros = {name: mx.zeros_like(p) for name, p in parameters.items()}
        return update(parameters, update.initial_slots(parameters), zeros, mx.array(experiment.train.optimizer.lr))[0]


class Torch:
    """The same."""

    methods, parameters, model = torch_methods, torch_parameters, TorchModel
    Quantized = TorchQuantized
    array, copied = staticmethod(torch.from_numpy), staticmethod(torch_parameters.to_numpy)

    def stored(self, model):
        return torch_parameters.to_tensors(torch_parameters.stored(model))

    def half(self, array):
        return torch.from_numpy(array).bfloat16()

    def floats(self, tensor):
        return tensor.detach().float().numpy()

    @torch.inference_mode()
    def answers(self, model, pixels):
        return model(torch.from_numpy(pixels)).numpy()

    def all(self, layer):
        return dict(layer.named_parameters())

    def trained(self, layer):
        return {name: p for name, p in layer.named_parameters() if p.requires_grad}

    def stepped(self, model, experiment):
        parameters = self.trained(model)
        for p in parameters.values():
            p.grad = torch.zeros_like(p)
        torch_training.Update(experiment.train, parameters, experiment.rates)(experiment.train.optimizer.lr)
        return parameters


SIDES = {"mlx": Mlx, "torch": Torch}


def build(
    side: Any, name: str = "linear", bits: int | None = None, seed: int = 0, qat: QAT | None = None,
    args: dict[str, Any] | None = None, **options: Any,
):  # fmt: skip
    """A model whose adapter was moved from its start; all have the same base and the same head."""
    description = Model(name="vit_tiny_patch16_224", weights="none", image_size=32, args=SIZES | (args or {}))
    base = load_base(description, CLASSES, 0, bits and Quantization(bits=bits, group_size=GROUP))
    model = side.model(base.architecture, CLASSES)
    side.parameters.fill(model, base)
    side.methods.apply(model, KINDS[name](name=name, **options), 0, qat)
    random = np.random.default_rng(seed)
    tensors = dict(sorted(side.stored(model).items()))
    for name, tensor in tensors.items():
        if not is_head(name):
            tensor += 0.1 * random.standard_normal(tensor.shape).astype(np.float32)
    side.parameters.load_adapter(model, tensors)
    model.eval()
    return model


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((count, 32, 32, 3)).astype(np.float32)


def adapted(side, model) -> dict:
    """What a method put into the model, by path."""
    return {path: layer for path, layer in model.named_modules() if isinstance(layer, side.methods.Adapted)}
