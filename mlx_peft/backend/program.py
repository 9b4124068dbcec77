"""A network that only answers, as one program for each size of a batch."""

from __future__ import annotations

from copy import deepcopy

import mlx.core as mx
import numpy as np

from mlx_peft.backend import forks, methods, threads
from mlx_peft.backend.device import DTYPES, set_up, usual_precision
from mlx_peft.backend.installed import installed
from mlx_peft.backend.models.preprocess import preprocess
from mlx_peft.backend.models.vit import VisionTransformer
from mlx_peft.backend.parameters import Arrays, every, lower
from mlx_peft.config.schema import Precision
from mlx_peft.core.errors import UserError


class Program:
    """See ``mlx_peft.library.program.Program``. It may be made in one thread and called in another.

    Args:
        network: what it is then does not change the program.
        precision: of what is computed, and of the weights; None: bfloat16 on a device, float32 on a CPU.
    """

    def __init__(self, network: VisionTransformer, precision: Precision | None = None) -> None:
        forks.check()
        set_up()
        self.precision: Precision = usual_precision() if precision is None else precision
        # An array never changes: what the network trains later are others.
        self.network = deepcopy(network, {id(array): array for array in every(network).values()})
        try:
            methods.merge(self.network)
            self.merged = True
        except UserError:
            self.merged = False
        self.network.eval()
        self.network.freeze()
        lower(self.network, DTYPES[self.precision])
        self.base, self.architecture = network.base, network.architecture
        self.arrays = every(self.network)
        mx.eval(self.arrays)  # what is lazy belongs to its thread
        self._evaluate = mx.compile(self._traced)

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        threads.settle()
        logits, features = self._evaluate(self.arrays, mx.array(images))
        return np.array(logits), np.array(features)

    def _traced(self, arrays: Arrays, images: mx.array) -> tuple[mx.array, mx.array]:
        depth, dtype = self.architecture.depth, DTYPES[self.precision]
        pixels = preprocess(images, self.base.preprocessing, self.architecture.img_size, dtype)
        with installed(self.network, arrays):
            read = self.network.prefix(pixels, depth + 1)
            logits = self.network.suffix(read, depth + 1)
        return logits.astype(mx.float32), read.astype(mx.float32).mean(axis=1)
