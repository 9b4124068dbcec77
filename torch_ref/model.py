"""A model in PyTorch: a network with a method in it, on CUDA where there is one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from convert.base import Base
from mlx_peft.adaptation.prefix import frozen_prefix
from mlx_peft.codes.quantizers import Quantizer
from mlx_peft.config.methods import MethodConfig
from mlx_peft.config.quantization import QAT
from mlx_peft.config.schema import Precision
from mlx_peft.config.tokens import ReducerConfig
from mlx_peft.core.border import Tensors
from mlx_peft.vit.attention import Explanation
from torch_ref import methods, threads, watched
from torch_ref.crossing import Crossing
from torch_ref.device import DTYPES, device, multiplying, set_up
from torch_ref.methods import simulated
from torch_ref.models.preprocess import preprocess
from torch_ref.models.vit import VisionTransformer
from torch_ref.parameters import count, every, fill, load_adapter, lower, stored, to_numpy, to_tensors, trained


class Model:
    """See ``mlx_peft.protocols.model.Model``.

    Args:
        base: the weights, and how images are prepared for them.
        num_classes: width of the head.
        method: what is put into the network, and with the head is what can be trained.
        seed: of what the method draws.
        qat: the codes that the blocks' linear layers are trained through; None: none.
        tokens: how it has fewer of them; None: all of them.
        precision: of what is computed, and of the frozen parameters.
        drop_path, head_dropout: of the network in training.
    """

    def __init__(
        self,
        base: Base,
        num_classes: int,
        method: MethodConfig,
        *,
        seed: int = 0,
        qat: QAT | None = None,
        tokens: ReducerConfig | None = None,
        precision: Precision = "float32",
        drop_path: float = 0.0,
        head_dropout: float = 0.0,
    ) -> None:
        set_up()
        self.precision = precision
        self.base, self.dtype = base.without_tensors(), DTYPES[precision]  # the network has the tensors now
        self.device = device()
        self.crossing = Crossing(self.device)
        self.network = VisionTransformer(base.architecture, num_classes, drop_path, head_dropout)
        fill(self.network, base)
        self.network.reduce(tokens, seed)
        methods.apply(self.network, method, seed, qat)
        self.network.to(self.device)
        lower(self.network, self.dtype)
        self.trained = trained(self.network)
        self.parameters = count(self.network)
        names = every(self.network)
        parted = self.device.type == "cpu" and not base.quantization  # which is unpacked for each part
        self.rows = threads.rows_at_once(base.architecture) if parted else None
        self.prefix = frozen_prefix(base.architecture, drop_path, names, self.trained, base.quantization, tokens)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def on_device(self, array: np.ndarray) -> Tensor:
        """An array where the network is."""
        return self.crossing.over(array)

    def pixels(self, images: Tensor) -> Tensor:
        """Images as the network takes them."""
        return preprocess(images, self.base.preprocessing, self.base.architecture.img_size, self.dtype)

    def read(self, inputs: np.ndarray) -> Tensor:
        """What ``forward`` takes: pixels of uint8 images, or the features in their place."""
        x = self.on_device(inputs)
        return self.pixels(x) if x.dtype == torch.uint8 else x.to(self.dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        """The network's logits, of images or of the features in their place; and what its reducers add to the loss."""
        if x.ndim == 4:
            return self.network.run(x)
        assert self.prefix is not None
        return self.network.suffix(x, self.prefix.end), 0.0  # no router stands behind it

    @contextmanager
    def _answering(self) -> Iterator[None]:
        self.network.eval()
        with torch.inference_mode(), multiplying(self.precision):
            yield

    def _answered(self, images: np.ndarray, compute: Callable[[Tensor], Tensor]) -> np.ndarray:
        """What a function gives of images as the network takes them, in parts that go through it at once."""

        def answer(part: slice) -> np.ndarray:
            with self._answering():
                return to_numpy(compute(self.read(images[part])))

        return threads.answered(answer, len(images), self.rows)

    # The protocol.

    def features(self, images: np.ndarray) -> np.ndarray:
        assert self.prefix is not None
        end = self.prefix.end
        return self._answered(images, lambda x: self.network.prefix(x, end))

    def logits(self, images: np.ndarray) -> np.ndarray:
        return self._answered(images, lambda x: self.forward(x)[0])

    def vectors(self, images: np.ndarray) -> np.ndarray:
        return self._answered(images, lambda x: self.network.prefix(x, self.base.architecture.depth + 1))

    def adapter(self) -> Tensors:
        return to_tensors(stored(self.network))

    def load_adapter(self, tensors: Tensors) -> None:
        load_adapter(self.network, tensors)

    def merged(self, dequantize: bool = False) -> Tensors:
        replaced = methods.merge(self.network, dequantize)
        try:
            return to_tensors(every(self.network))
        finally:
            methods.unmerge(self.network, replaced)

    def record(
        self, images: np.ndarray, observe: Callable[[str, np.ndarray], object], at: Collection[str] | None = None
    ) -> None:
        with self._answering():
            simulated.record(self.network, self.read(images), lambda point, x: observe(point, to_numpy(x)), at)

    def explain(self, images: np.ndarray, classes: Sequence[int] | None = None) -> Explanation:
        self.network.eval()
        with multiplying(self.precision):
            return watched.explain(self.network, self.read(images), classes)

    def simulate(self, quantizers: Mapping[str, Quantizer]) -> None:
        simulated.simulate(self.network, quantizers)
