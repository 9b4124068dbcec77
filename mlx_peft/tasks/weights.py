"""What images of a class count in the loss."""

from __future__ import annotations

import numpy as np


def class_weights(labels: np.ndarray, num_classes: int, kind: str) -> np.ndarray:
    """What an image counts in the loss, by class: float32 ``(num_classes,)``, 1 on average over the images.

    ``balanced``: n / (classes * n_k), scikit-learn's; ``square_root``: in proportion to n_k^-1/2; ``none``: 1.
    With both of them a class without images has 0, and is not one of the classes.
    """
    if kind == "none":
        return np.ones(num_classes, np.float32)
    counts = np.bincount(labels, minlength=num_classes)
    power = {"square_root": 0.5, "balanced": 1.0}[kind]
    weights = np.where(counts > 0, np.maximum(counts, 1).astype(np.float64) ** -power, 0.0)
    return np.asarray(weights * (counts.sum() / (counts * weights).sum()), np.float32)
