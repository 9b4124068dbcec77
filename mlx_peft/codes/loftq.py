"""LoftQ: codes of a weight, and the A and B beside them, chosen together.

In turn, Q = quant(W - s B A), the affine codes of what A and B leave, and s B A = the r leading singular triplets of
W - Q, the nearest of rank r to what the codes leave (Eckart and Young). The first turn begins with B A = 0, and so with
the codes of W itself. Li et al. 2023 (arXiv 2310.08659), algorithm 1, with the codes of ``quant.affine``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mlx_peft.adaptation.factors import Matrix, principal, row_norms, stacked
from mlx_peft.codes.affine import Codes, dequantized, quantized
from mlx_peft.config.methods import LoRA
from mlx_peft.config.methods.lora import BELOW
from mlx_peft.config.quantization import Quantization
from mlx_peft.core.border import Tensors
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.sites import Site


class Together(NamedTuple):
    """A layer's codes, A and B beside them, as LoRA holds them, and the weight ``(out, in)`` that all make."""

    codes: Codes
    A: Matrix
    B: Matrix
    weight: Matrix


def together(method: LoRA, site: Site, weight: Matrix, quantization: Quantization) -> Together:
    """The codes and factors of a layer after ``method.loftq.steps`` turns; q, k and v have their own factors.

    Args:
        weight: ``(out, in)``, float32, before it is quantised.
    """
    rank, s = method.rank_of(site.path), method.scaling_of(site.path)
    update = np.zeros_like(weight)
    for _ in range(method.loftq.steps):
        codes = quantized(weight - update, quantization.bits, quantization.group_size)
        coded = dequantized(*codes, quantization.bits)
        pairs = [principal(weight[rows] - coded[rows], rank, s) for rows in site.rows]
        for rows, (A, B) in zip(site.rows, pairs, strict=True):
            update[rows] = s * (B @ A)
    return Together(codes, *stacked(pairs), coded + update)


def start(method: LoRA, architecture: Architecture, plain: Tensors, quantization: Quantization) -> Tensors:
    """What an adapter of the method starts from: its factors, and the codes below them, by the adapter's names.

    Args:
        plain: timm's state dictionary, before it is quantised.
    """
    found: Tensors = {}
    for site in method.sites(architecture):
        codes, A, B, weight = together(method, site, plain[f"{site.path}.weight"], quantization)
        names = quantization.codes(site, f"{site.path}.{BELOW}")
        if method.dora:
            found |= magnitudes(site, row_norms(weight))
        found |= {f"{site.path}.lora_A": A, f"{site.path}.lora_B": B, **dict(zip(names, codes, strict=True))}
    return found


def magnitudes(site: Site, norms: Matrix) -> Tensors:
    """DoRA's, of the rows that are adapted and of the others, where there are any."""
    adapted = np.zeros(site.outputs, bool)
    for rows in site.rows:
        adapted[rows] = True
    named = {"lora_magnitude_vector": norms[adapted], "lora_magnitude_rest": norms[~adapted]}
    return {f"{site.path}.{name}": values for name, values in named.items() if len(values)}
