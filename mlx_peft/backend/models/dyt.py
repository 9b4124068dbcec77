"""DyT: in every block a trained router says which patch tokens go through the MLP; the others go past it.

x is a patch token behind the block's attention, and z = w x + b, with a w and b for each block. A token has m = 1 where
z > 0, and m = 0 elsewhere; m mlp(norm2(x)) is added to it. In training z has a draw from Logistic(0, 1) added, which is
the difference of two Gumbel draws. The gradient takes m for sigmoid(z / t). The loss gains a (mean m - rate)^2, of the
mean over the images of a step, the routers and the patch tokens. Initially w ~ N(0, 0.02), b = 0.
Zhao et al. 2024 (arXiv 2403.11808), section 3; t = 5, a = 2 and the initial values are the code's that the authors
published, as is that the router reads x without a norm.

Every token goes through the MLP, and m is multiplied in: how many have m = 1 is another number for each image, and a
compiled step has one shape. z is rounded, so that what is all but 0 is 0 in both backends. A router stands in each
block that patch tokens come out of. The authors also train all tokens through all MLPs, in a second pass, and towards
its answers; there is no second pass here.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_peft.backend.models.attention import Attended
from mlx_peft.backend.models.layers import Linear
from mlx_peft.backend.models.ranking import rounded
from mlx_peft.backend.models.reducer import Reducer
from mlx_peft.backend.models.stochastic import logistic
from mlx_peft.backend.models.tokens import Tokens
from mlx_peft.config.tokens import ROUTERS, DyT
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.parameters import last


class Router(Reducer):
    """Turns down patch tokens for its block's MLP.

    Args:
        routers: a row of weights, and a bias, for each block.
        number: which of them is this block's.
        temperature: t.
    """

    def __init__(self, routers: nn.Module, number: int, temperature: float):
        super().__init__()
        self._routers = (routers,)  # in a tuple, so that it is no child of every block
        self.number = number
        self.temperature = temperature

    def __call__(self, tokens: Tokens, attended: Attended) -> Tokens:
        (routers,) = self._routers
        weight, bias = routers.weight[self.number].astype(mx.float32), routers.bias[self.number].astype(mx.float32)
        scores = logistic(tokens.patches.astype(mx.float32) @ weight + bias, self.training)
        through = mx.stop_gradient((rounded(scores) > 0).astype(mx.float32))
        slope = mx.sigmoid(scores / self.temperature)
        return tokens.gated(through + (slope - mx.stop_gradient(slope)))


def dyt(config: DyT, depth: int, trained: nn.Module) -> dict[int, Reducer]:
    """A router in every block that has one, by number."""
    return {number: Router(trained, number, config.temperature) for number in range(len(trained.bias))}


def initial(config: DyT, architecture: Architecture, seed: int) -> nn.Module:
    """The routers of a model as training begins."""
    layer = Linear(*reversed(config.added(architecture)[f"{ROUTERS}.weight"]))
    for name, values in config.initial(architecture, seed).items():
        layer[last(name)] = mx.array(values)
    return layer


def rate_loss(config: DyT, passed: mx.array) -> mx.array:
    """a (mean - rate)^2, of the shares of patch tokens that were let through, ``(batch, routers)``."""
    return config.weight * (passed.mean() - config.rate) ** 2
