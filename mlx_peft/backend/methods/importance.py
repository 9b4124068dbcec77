"""How much the loss depends on each element of a parameter, averaged over the steps of the training.

Zhang et al. 2023 (arXiv 2303.10512), section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mlx.core as mx

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

    def initial(self, parameters: Mapping[str, mx.array]) -> dict[str, dict[str, mx.array]]:
        """Both averages before the first step."""
        zeros = {name: mx.zeros_like(parameters[name]) for name in self.names}
        return {average: dict(zeros) for average in AVERAGES}

    def observed(
        self,
        averages: dict[str, dict[str, mx.array]],
        parameters: Mapping[str, mx.array],
        gradients: Mapping[str, mx.array],
    ) -> dict[str, dict[str, mx.array]]:
        """Both averages after one more step."""
        importance, uncertainty = {}, {}
        for name in self.names:
            now = mx.abs(parameters[name] * gradients[name])
            mean = self.beta1 * averages["importance"][name] + (1 - self.beta1) * now
            off = mx.abs(now - mean)
            importance[name] = mean
            uncertainty[name] = self.beta2 * averages["uncertainty"][name] + (1 - self.beta2) * off
        return {"importance": importance, "uncertainty": uncertainty}

    def scores(self, averages: Mapping[str, dict[str, mx.array]]) -> dict[str, mx.array]:
        """The score of each element, by parameter."""
        return {name: averages["importance"][name] * averages["uncertainty"][name] for name in self.names}
