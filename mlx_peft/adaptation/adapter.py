"""What an adapter holds: the tensors that are trained or kept, by name and shape, known without a model."""

from __future__ import annotations

from mlx_peft.config.methods import MethodConfig
from mlx_peft.config.quantization import QAT, Quantization
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.parameters import is_head
from mlx_peft.vit.shapes import Shapes, shapes


def adapter_shapes(
    method: MethodConfig,
    architecture: Architecture,
    num_classes: int,
    quantization: Quantization | None = None,
    qat: QAT | None = None,
) -> Shapes:
    """The tensors of a model's adapter: what the method trains and keeps, trained scales of codes, the heads.

    Args:
        quantization: of the base.
        qat: the codes that are trained through.

    Raises:
        UserError: where the method cannot be put on such a model.
    """
    method.check(architecture)
    method.check_quantization(architecture, quantization)
    own = shapes(architecture, num_classes)
    trained = {*method.selected(architecture), *filter(is_head, own)}
    found = {name: shape for name, shape in own.items() if name in trained}
    return found | method.added(architecture, quantization) | (qat.added(architecture) if qat else {})
