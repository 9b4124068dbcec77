"""What a method makes of a network in shapes: nothing, unless a class made from this one says what."""

from __future__ import annotations

import math
from typing import Generic, TypeVar

from mlx_peft.adaptation.estimate.layers import Tokens
from mlx_peft.adaptation.estimate.network import Network
from mlx_peft.adaptation.estimate.tape import FLOAT32, Array, Shape, Store
from mlx_peft.config.methods import MethodConfig
from mlx_peft.config.methods.base import Targeted
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.places import Kinds
from mlx_peft.vit.sites import Site

Config = TypeVar("Config", bound=MethodConfig)
Chosen = TypeVar("Chosen", bound=Targeted)


class Form(Generic[Config]):
    """The layers of a method, of a model of a kind. It is the form of one that trains what the model has.

    Args:
        method: with its options.
        architecture: of the model.
    """

    def __init__(self, method: Config, architecture: Architecture) -> None:
        self.method, self.architecture = method, architecture
        self.sites: dict[str, Site] = {}  # of adapted layers, by path

    def linear(self, net: Network, path: str, x: Array) -> Array:
        """The linear layer at a path, of x; rounded where it is trained through codes."""
        if net.qat is not None:
            return net.rounded(path, x, self.formed(net, path))
        site = self.sites.get(path)
        return net.plain(path, x) if site is None else self.adapted(net, site, x)

    def adapted(self, net: Network, site: Site, x: Array) -> Array:
        """A layer that the method adapts, of x."""
        raise NotImplementedError

    def formed(self, net: Network, path: str) -> Array:
        """The weight of a linear layer with the method's update in it, float32."""
        return net.parameter(f"{path}.weight")

    def behind(self, net: Network, path: str, x: Array) -> Array:
        """What stands behind the patch projection, a norm or a scale: x itself."""
        return x

    def block(self, net: Network, number: int, tokens: Tokens, queries: Kinds | None) -> Tokens:
        """A block."""
        return net.block(number, tokens, queries)

    def penalty(self, net: Network) -> None:
        """What the loss gains in training."""

    def averaged(self, net: Network) -> list[str]:
        """The parameters whose importance is averaged over the steps."""
        return []


class Targeting(Form[Chosen]):
    """Of a method that adapts linear layers by their targets."""

    def __init__(self, method: Chosen, architecture: Architecture) -> None:
        super().__init__(method, architecture)
        self.sites = {site.path: site for site in method.sites(architecture)}


def made(shape: Shape, needs: bool = False) -> Array:
    """A float32 array that a method makes."""
    return Array(shape, FLOAT32, Store(math.prod(shape) * FLOAT32), needs)


def dropped(net: Network, x: Array, probability: float) -> Array:
    """x with some of its numbers dropped: multiplied with a mask."""
    return net.tape.times(x, Array(x.shape, x.item, Store(x.size))) if probability else x
