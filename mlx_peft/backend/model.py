"""A model in MLX: a network as a program, and its arrays, base and adapter, as what the program is given."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten

from convert.base import Base
from mlx_peft.adaptation.prefix import frozen_prefix
from mlx_peft.backend import forks, methods, watched
from mlx_peft.backend.device import DTYPES, set_up
from mlx_peft.backend.installed import installed
from mlx_peft.backend.methods import simulated
from mlx_peft.backend.models.preprocess import preprocess
from mlx_peft.backend.models.vit import VisionTransformer
from mlx_peft.backend.parameters import (
    Arrays,
    count,
    every,
    fill,
    frozen,
    load_adapter,
    lower,
    stored,
    to_tensors,
    trained,
)
from mlx_peft.codes.quantizers import Quantizer
from mlx_peft.config.methods import MethodConfig
from mlx_peft.config.quantization import QAT
from mlx_peft.config.schema import Precision
from mlx_peft.config.tokens import ReducerConfig
from mlx_peft.core.border import Tensors
from mlx_peft.vit.attention import Explanation


class Model:
    """See ``mlx_peft.protocols.model.Model``. One thread must own it: MLX's lazy arrays belong to theirs.

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
        self.base, self.dtype = base.without_tensors(), DTYPES[precision]  # the network has the tensors now
        self.network = VisionTransformer(base.architecture, num_classes, drop_path, head_dropout)
        fill(self.network, base)
        self.network.reduce(tokens, seed)
        methods.apply(self.network, method, seed, qat)
        lower(self.network, self.dtype)
        self._take_up()
        self.parameters = count(self.network)
        names = every(self.network)
        self.prefix = frozen_prefix(base.architecture, drop_path, names, self.trained, base.quantization, tokens)
        mx.eval(self.network.parameters())
        mx.reset_peak_memory()

    def _take_up(self) -> None:
        """The arrays of the network as it stands, by name, always in this order, and functions of them."""
        self.frozen, self.trained = frozen(self.network), trained(self.network)
        self._logits = mx.compile(self._evaluate)
        self._features = mx.compile(self._front)
        self._vectors = mx.compile(self._read)

    def put(self, arrays: Arrays) -> None:
        """Sets parameters by name, without a copy; nothing that is compiled is compiled again."""
        self.network.update(tree_unflatten(list(arrays.items())))
        for own in (self.frozen, self.trained):
            own |= {name: array for name, array in arrays.items() if name in own}

    # Traced functions: every array comes in as an argument, and goes out as a result.

    def pixels(self, images: mx.array) -> mx.array:
        """Images as the network takes them."""
        return preprocess(images, self.base.preprocessing, self.base.architecture.img_size, self.dtype)

    def forward(self, inputs: mx.array) -> tuple[mx.array, mx.array | float]:
        """The network's logits, of images or of the features in their place; and what its reducers add to the loss."""
        if inputs.dtype == mx.uint8:
            return self.network.run(self.pixels(inputs))
        assert self.prefix is not None
        return self.network.suffix(inputs.astype(self.dtype), self.prefix.end), 0.0  # no router stands behind it

    def _evaluate(self, frozen: Arrays, trained: Arrays, inputs: mx.array) -> mx.array:
        self.network.eval()
        with installed(self.network, frozen | trained):
            return self.forward(inputs)[0].astype(mx.float32)

    def _front(self, frozen: Arrays, trained: Arrays, images: mx.array) -> mx.array:
        assert self.prefix is not None
        self.network.eval()
        with installed(self.network, frozen | trained):
            return self.network.prefix(self.pixels(images), self.prefix.end).astype(mx.float32)

    def _read(self, frozen: Arrays, trained: Arrays, images: mx.array) -> mx.array:
        self.network.eval()
        with installed(self.network, frozen | trained):
            return self.network.prefix(self.pixels(images), self.base.architecture.depth + 1).astype(mx.float32)

    # The protocol.

    def features(self, images: np.ndarray) -> np.ndarray:
        forks.check()
        return np.array(self._features(self.frozen, self.trained, mx.array(images)))

    def logits(self, images: np.ndarray) -> np.ndarray:
        forks.check()
        return np.array(self._logits(self.frozen, self.trained, mx.array(images)))

    def vectors(self, images: np.ndarray) -> np.ndarray:
        forks.check()
        return np.array(self._vectors(self.frozen, self.trained, mx.array(images)))

    def adapter(self) -> Tensors:
        forks.check()
        return to_tensors(self.network, stored(self.network))

    def load_adapter(self, tensors: Tensors) -> None:
        load_adapter(self.network, tensors)
        self.put(stored(self.network))

    def merged(self, dequantize: bool = False) -> Tensors:
        forks.check()
        replaced = methods.merge(self.network, dequantize)
        try:
            return to_tensors(self.network, every(self.network))
        finally:
            methods.unmerge(self.network, replaced)

    def record(
        self, images: np.ndarray, observe: Callable[[str, np.ndarray], object], at: Collection[str] | None = None
    ) -> None:
        forks.check()
        self.network.eval()
        x = self.pixels(mx.array(images))
        simulated.record(self.network, x, lambda point, x: observe(point, np.array(x.astype(mx.float32))), at)

    def explain(self, images: np.ndarray, classes: Sequence[int] | None = None) -> Explanation:
        forks.check()
        self.network.eval()
        return watched.explain(self.network, self.pixels(mx.array(images)), classes)

    def simulate(self, quantizers: Mapping[str, Quantizer]) -> None:
        simulated.simulate(self.network, quantizers)
        self._take_up()  # it is another program now, whose layers have other names
