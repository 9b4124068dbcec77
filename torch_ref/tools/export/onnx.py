"""ONNX: one graph from normalised images to logits, of any batch size."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxscript  # noqa: F401 - torch's exporter stands on it: its absence is to be known before any work
import torch
from torch import Tensor

from convert.base import Base
from convert.problem import written
from mlx_peft.core.border import Tensors
from torch_ref.models.vit import VisionTransformer
from torch_ref.tools.export.graph import expected, filled, quiet

INPUT, OUTPUT = "pixel_values", "logits"
OPSET = 18
"""What torch's exporter writes natively in all its versions; ONNX Runtime reads it since 1.14."""

INLINE_LIMIT = 2**31 - 2**24
"""Bytes of tensors that fit into one protobuf, whose limit is 2 GiB, with 16 MiB left for the graph."""

TOLERANCE = 1e-4
"""Of the logits, relative, float32 on both sides: other kernels and another order of summation."""


class Graph(VisionTransformer):
    """The model over images with channels first, as other runtimes have them: ``(batch, 3, size, size)``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1))


def write(path: Path, base: Base, tensors: Tensors, classes: Sequence[str]) -> None:
    """Writes the model to ``path``; beyond 2 GiB its tensors lie beside it, in a file with ``.data`` at the end.

    The graph takes ``pixel_values``, float32 ``(batch, 3, size, size)``, normalised, and gives ``logits``. How images
    are to be prepared, the classes' names, and the task's ``problem_type`` unless it is the usual one, are in its
    metadata, as JSON.

    Raises:
        ValueError: where the tensors are not the architecture's.
    """
    model = filled(Graph, base, tensors)
    size = base.architecture.img_size
    with quiet():
        program = torch.onnx.export(
            model,
            (torch.zeros(2, 3, size, size),),  # a dimension of 1 would be taken for a constant
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
        )
        graph = program.model
        for part in (graph.graph, *graph.functions.values()):
            for node in part:
                node.metadata_props.clear()  # the exporter's stack traces, with paths of this machine
        graph.producer_name, graph.producer_version = "mlx-peft", None
        graph.metadata_props.clear()
        graph.metadata_props.update({name: json.dumps(value) for name, value in facts(base, classes).items()})
        program.save(str(path), external_data=sum(tensor.nbytes for tensor in tensors.values()) > INLINE_LIMIT)
    onnx.checker.check_model(str(path), full_check=True)


def facts(base: Base, classes: Sequence[str]) -> dict[str, object]:
    """What a person needs to use the graph, by key of its metadata."""
    return {
        "model": base.name,
        "classes": list(classes),
        **written(base.task),
        "image_size": base.architecture.img_size,
        **base.preprocessing.model_dump(mode="json"),
    }


def prove(path: Path, base: Base, tensors: Tensors, classes: Sequence[str]) -> tuple[float, str]:
    """Compares ONNX Runtime's logits with the tensors' own.

    Returns:
        The largest relative difference, ||a - b|| / ||b||, and what was compared.

    Raises:
        ValueError: where it is beyond TOLERANCE.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for images, logits in expected(base, tensors):
        (found,) = session.run([OUTPUT], {INPUT: images})
        scale = max(float(np.linalg.norm(logits)), np.finfo(np.float32).tiny)
        worst = max(worst, float(np.linalg.norm(found - logits)) / scale)
    if not worst <= TOLERANCE:
        raise ValueError(f"ONNX Runtime's logits differ by {worst:.1e}, relative, where {TOLERANCE:.0e} is allowed")
    return worst, f"ONNX Runtime's logits differ by {worst:.1e} at most, relative, at batch 1 and 7"
