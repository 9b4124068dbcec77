"""How each parameter learns under a method: at which rate, and whether weight decay applies."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_peft.config.methods import MethodConfig
from mlx_peft.config.quantization import QAT, is_scale
from mlx_peft.vit.parameters import decays


@dataclass(frozen=True)
class Rates:
    """Of a model's parameters, by their names.

    Attributes:
        method: the model's; None: it has none, and trains whatever it has.
        qat: the codes that it is trained through; None: none.
    """

    method: MethodConfig | None
    qat: QAT | None = None

    def lr_ratio(self, name: str) -> float:
        """The learning rate of a parameter, over that of the optimiser."""
        if self.qat is not None and is_scale(name):
            return self.qat.lr_ratio
        return 1.0 if self.method is None else self.method.lr_ratio(name)

    def decays(self, name: str, ndim: int) -> bool:
        """Whether weight decay applies to a parameter with so many axes: not to the scales of codes."""
        applies = decays if self.method is None else self.method.decays
        return not is_scale(name) and applies(name, ndim)
