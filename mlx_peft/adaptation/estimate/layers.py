"""The parameters and the layers of a network in shapes, and what a method and a reducer put among them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from mlx_peft.adaptation.estimate.operations import Operations
from mlx_peft.adaptation.estimate.tape import FLOAT32, Array, Calls, Shape, Store
from mlx_peft.config.quantization import QAT, WORD, Quantization
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.places import Kinds, Places

if TYPE_CHECKING:
    from mlx_peft.adaptation.estimate.network import Network


@dataclass(frozen=True)
class Tokens:
    """What goes from block to block, see ``models/tokens.py``."""

    x: Array
    places: Places
    sizes: Array | None = None
    gate: Array | None = None
    side: Array | None = None
    aside: Array | None = None

    def holding(self, x: Array) -> Tokens:
        """The same tokens with other values."""
        return replace(self, x=x)


class Form(Protocol):
    """What a method makes of a network."""

    def linear(self, net: Network, path: str, x: Array) -> Array:
        """The linear layer of a block at a path, of x."""
        ...

    def behind(self, net: Network, path: str, x: Array) -> Array:
        """What stands behind the patch projection, the norm or the scale at a path."""
        ...

    def block(self, net: Network, number: int, tokens: Tokens, queries: Kinds | None) -> Tokens:
        """A block."""
        ...

    def penalty(self, net: Network) -> None:
        """What the loss gains in training."""
        ...

    def averaged(self, net: Network) -> list[str]:
        """The parameters whose importance is averaged over the steps."""
        ...


class Reducer(Protocol):
    """What stands between attention and MLP."""

    def __call__(self, net: Network, number: int, tokens: Tokens, q: Array, k: Array, asking: Places) -> Tokens: ...


@dataclass
class Layers:
    """The layers of a model by path, on a tape.

    Attributes:
        tape: where what they compute is written.
        architecture: what the model is made of.
        parameters: the shapes of all parameters by name, a method's too.
        trained: the names of those that are trained.
        exact: of those that are frozen, which are float32 whatever the precision.
        item: bytes of a number of activations.
        form: the method's.
        reducer: None: all tokens.
        quantization: of the base.
        qat: the codes that are trained through.
        drop_path: whether whole branches are dropped.
        head_dropout: whether features are, before the head.
    """

    tape: Operations
    architecture: Architecture
    parameters: Mapping[str, Shape]
    trained: Collection[str]
    exact: Collection[str]
    item: int
    form: Form
    reducer: Reducer | None = None
    quantization: Quantization | None = None
    qat: QAT | None = None
    drop_path: float = 0.0
    head_dropout: float = 0.0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        self._arrays: dict[str, Array] = {}
        self.pixels = Array((0,), self.item, Store(0))

    # Parameters and layers.

    def has(self, name: str) -> bool:
        """Whether there is a parameter of a name."""
        return name in self.parameters

    def parameter(self, name: str) -> Array:
        """A parameter: frozen in the precision of activations, trained in float32."""
        if name not in self._arrays:
            shape, trained = self.parameters[name], name in self.trained
            item = FLOAT32 if trained or name in self.exact else self.item
            self._arrays[name] = Array(shape, item, Store(math.prod(shape) * item, owned=True), trained)
        return self._arrays[name]

    def these(self, path: str, *names: str) -> list[Array]:
        """The parameters of a layer that it has."""
        return [self.parameter(f"{path}.{name}") for name in names if self.has(f"{path}.{name}")]

    def plain(self, path: str, x: Array) -> Array:
        """A linear layer of the base."""
        if self.coded(path):
            y = self.unbiased(path, x)
            return self.tape.add(y, *self.these(path, "bias"))
        bias = self.these(path, "bias")
        return self.tape.product(x, self.parameter(f"{path}.weight"), *bias)

    def unbiased(self, path: str, x: Array) -> Array:
        """The same without its bias."""
        if not self.coded(path):
            return self.tape.product(x, self.parameter(f"{path}.weight"))
        outputs, inputs = self.widths(path)
        self.tape.count(x, x.rows * outputs * inputs, int(x.needs))
        beside = outputs * inputs * (x.item + self.tape.code)
        unpacking = Calls(31, 31)  # as many as MLX calls for 4 bits: a code of each word at a time
        return self.tape.run([x], (*x.shape[:-1], outputs), beside=beside, behind=beside, calls=unpacking)

    def coded(self, path: str) -> bool:
        """Whether the layer at a path is quantised."""
        return self.quantization is not None and self.has(f"{path}.scales")

    def widths(self, path: str) -> tuple[int, int]:
        """Outputs and inputs of a linear layer."""
        outputs, inputs = self.parameters[f"{path}.weight"]
        if self.coded(path):
            assert self.quantization is not None
            inputs = inputs * WORD // self.quantization.bits
        return outputs, inputs

    def rounded(self, path: str, x: Array, weight: Array) -> Array:
        """A linear layer whose weight is rounded as it is trained."""
        assert self.qat is not None
        size = math.prod(weight.shape) * FLOAT32
        scales = self.these(path, "lsq_scale")
        keeps = [weight, *scales] if scales else []
        weight = self.tape.run([weight, *scales], weight.shape, keeps=keeps, beside=3 * size, behind=3 * size)
        return self.tape.add(self.tape.product(x, weight), *self.these(path, "bias"))
