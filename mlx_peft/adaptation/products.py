"""What Hadamard and Kronecker products of trained matrices start from, in NumPy, so that both backends start equal."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlx_peft.config.methods import LoHa, LoKr
from mlx_peft.vit.initial import kaiming_uniform
from mlx_peft.vit.sites import Site

Matrix = NDArray[np.float32]


def hadamard_factors(method: LoHa, site: Site, seed: int) -> list[Matrix]:
    """LoHa's first A_1, B_1, A_2 and B_2, float32, those of parts stacked: the last is 0."""
    rank, inputs = method.rank, (site.count * method.rank, site.inputs)
    left, right, other = (
        kaiming_uniform(shape, shape[1], seed, f"{site.path}.hada_{name}")
        for name, shape in (("w1_a", (site.adapted, rank)), ("w1_b", inputs), ("w2_a", (site.adapted, rank)))
    )
    return [left, right, other, np.zeros(inputs, np.float32)]


def kronecker_factors(method: LoKr, site: Site, seed: int) -> dict[str, Matrix]:
    """LoKr's first tensors by name, float32: W_1, or the first of its two factors, is 0."""
    return {
        name: np.zeros(shape, np.float32)
        if name in ("lokr_w1", "lokr_w1_a")
        else kaiming_uniform(shape, shape[1], seed, f"{site.path}.{name}")
        for name, shape in method.factors(site).items()
    }
