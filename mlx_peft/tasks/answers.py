"""Classes with their probabilities, as a person is told them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mlx_peft.core.text import printable


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities that add up to 1, of the logits of one image."""
    odds: np.ndarray = np.exp(logits - logits.max())
    odds /= odds.sum()
    return odds


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Each logit's own probability."""
    odds: np.ndarray = np.exp(-np.logaddexp(0, -logits))
    return odds


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "identity": lambda logits: logits,
}
"""What makes probabilities of the logits of one image, by its name; of values, nothing does."""


def likeliest(logits: np.ndarray, probabilities: np.ndarray, classes: Sequence[str], top: int) -> list[dict[str, Any]]:
    """``{"class": ..., "probability": ...}`` of the ``top`` largest logits; of equal ones the first comes first."""
    best = np.argsort(-logits, kind="stable")[:top]
    return [{"class": classes[index], "probability": float(probabilities[index])} for index in best]


def line(entry: Mapping[str, Any]) -> str:
    """`` 97.2 %  cat``"""
    return f"{100 * entry['probability']:5.1f} %  {printable(entry['class'])}"
