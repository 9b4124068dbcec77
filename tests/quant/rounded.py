"""Numbers as either backend rounds them to codes, and how far they may be from another's."""

import numpy as np
import torch  # before MLX: see mlx_peft.backend.blas
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

# isort: split
import mlx.core as mx

import mlx_peft.backend.quant.simulated as ours
import torch_ref.quant.simulated as twin

ROUNDING = 1e-5
"""Relative, float32: a few hundred roundings of 1.2e-7 each."""

LOG_CODES = 1e-4
"""Share of log-sqrt2 codes that may differ between two libraries: their log2 differ in the last bit, so a number within
about 1e-6 of a step's edge may fall on either side of it."""

numbers = arrays(np.float32, st.integers(1, 40), elements=st.floats(-1e3, 1e3, width=32))


def in_backends(quantizer, x):
    return np.array(ours.quantize(quantizer, mx.array(x))), twin.quantize(quantizer, torch.from_numpy(x)).numpy()
