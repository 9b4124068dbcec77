"""A network that only answers, as one program for each size of a batch."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch
from torch import Tensor

from mlx_peft.config.schema import Precision
from mlx_peft.core.errors import UserError
from torch_ref import methods, threads
from torch_ref.device import DTYPES, multiplying, set_up, usual_precision
from torch_ref.models.preprocess import preprocess
from torch_ref.models.vit import VisionTransformer
from torch_ref.parameters import lower, to_numpy


class Program:
    """See ``mlx_peft.library.program.Program``. It may be made in one thread and called in another.

    Args:
        network: what it is then does not change the program.
        precision: of what is computed, and of the weights; None: bfloat16 on a device, float32 on a CPU.
    """

    def __init__(self, network: VisionTransformer, precision: Precision | None = None) -> None:
        set_up()
        self.precision: Precision = usual_precision() if precision is None else precision
        self.network = deepcopy(network)  # a step changes a parameter in place
        try:
            methods.merge(self.network)
            self.merged = True
        except UserError:
            self.merged = False
        self.network.eval()
        self.network.requires_grad_(False)
        lower(self.network, DTYPES[self.precision])
        self.base, self.architecture = network.base, network.architecture
        self.device = self.network.head.weight.device
        # On a CPU compiling took minutes a size, on two busy cores, to win a seventh of the time of one block of ViT-S.
        self._evaluate = torch.compile(self._traced, dynamic=False) if self.device.type == "cuda" else self._traced

        parted = self.device.type == "cpu" and not self.network.quantization  # which is unpacked for each part
        self.rows = threads.rows_at_once(self.architecture) if parted else None

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        both = threads.answered(lambda part: self._answered(images[part]), len(images), self.rows)
        logits, features = np.split(both, [self.network.head.weight.shape[0]], axis=1)
        return logits, features

    def _answered(self, images: np.ndarray) -> np.ndarray:
        """Logits and features, beside one another."""
        with torch.inference_mode(), multiplying(self.precision):
            levels, size = torch.from_numpy(images).to(self.device), self.architecture.img_size
            logits, features = self._evaluate(preprocess(levels, self.base.preprocessing, size, DTYPES[self.precision]))
            return to_numpy(torch.cat([logits, features], dim=1))

    def _traced(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        depth = self.architecture.depth
        read = self.network.prefix(pixels, depth + 1)
        return self.network.suffix(read, depth + 1).float(), read.float().mean(dim=1)
