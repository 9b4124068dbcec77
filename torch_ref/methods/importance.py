"""How much the loss depends on each element of a parameter, averaged over the steps of the training.

Zhang et al. 2023 (arXiv 2303.10512), section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

AVERAGES = ("importance", "uncertainty")
"""``Importance`` keeps these two averages of each element: M and U."""


class Importance:
    """How much the loss depends on each element of the triplets, averaged over steps.

    After a step with parameter p and the gradient g that the optimiser was given: I = |p g|,
    M = beta1 M + (1 - beta1) I, U = beta2 U + (1 - beta2) |I - M| with the new M; the element's score is M U.

    Args:
        names: the parameters.
        beta1, beta2: of the two averages.
    """

    def __init__(self, names: Sequence[str], beta1: float, beta2: float):
        self.names = tuple(names)
        self.beta1, self.beta2 = beta1, beta2

    def initial(self, parameters: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Both averages before the first step."""
        return {
            average: {name: torch.zeros_like(parameters[name], requires_grad=False) for name in self.names}
            for average in AVERAGES
        }

    @torch.no_grad()
    def observe(
        self,
        averages: Mapping[str, dict[str, Tensor]],
        parameters: Mapping[str, Tensor],
        made: Tensor | None = None,
    ) -> None:
        """Moves both averages, in place, by one more step, whose gradients still lie in the parameters.

        Args:
            made: whether the step was made, on the device; None: it was.
        """
        for name in self.names:
            own = [averages[average][name] for average in AVERAGES]
            before = [average.clone() for average in own] if made is not None else []
            mean, uncertainty = own
            now = (parameters[name] * parameters[name].grad).abs_()
            mean.mul_(self.beta1).add_(now, alpha=1 - self.beta1)
            off = now.sub_(mean).abs_()
            uncertainty.mul_(self.beta2).add_(off, alpha=1 - self.beta2)
            for average, old in zip(own, before, strict=False):
                average.copy_(torch.where(made, average, old))

    def scores(self, averages: Mapping[str, dict[str, Tensor]]) -> dict[str, Tensor]:
        """The score of each element, by parameter."""
        return {name: averages["importance"][name] * averages["uncertainty"][name] for name in self.names}
