"""The parity matrix: what ``mlx-peft parity`` prints, each cell a test."""

import pytest
import torch  # noqa: F401  before MLX: see mlx_peft.blas

from mlx_peft.engine import parity

LIGHT = {"vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"}
"""Models under which every method is compared; the others under the first one, LoRA on all four layers."""

CELLS = [(model, method) for model in parity.MODELS for method in parity.METHODS if model in LIGHT or method == "lora"]


@pytest.mark.parametrize(("model", "method"), CELLS, ids=map("-".join, CELLS))
def test_backends_agree(model, method):
    (cell,) = parity.cells([model], [method])
    assert cell.logits <= parity.LOGITS
    assert cell.merged <= parity.LOGITS
    assert cell.loss <= parity.LOGITS
    assert cell.gradients <= parity.GRADIENTS, cell.worst
    assert cell.trajectory <= parity.TRAJECTORY


@pytest.mark.slow
@pytest.mark.parametrize("model", [m for m in parity.MODELS if m not in LIGHT])
@pytest.mark.parametrize("method", [m for m in parity.METHODS if m != "lora"])
def test_backends_agree_in_the_whole_matrix(model, method):
    test_backends_agree(model, method)
