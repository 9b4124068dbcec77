"""Core ML: an image classifier as an ``.mlpackage``, for macOS 13 and iOS 16 or later.

It takes a picture, 8 bits a channel, normalises it itself, and gives the likeliest class and the probabilities of all.
Where a picture may have several classes there is no likeliest one, and Core ML's classifiers know nothing else: the
package is a plain model then, which gives the probability of each class in an array; their names are in its metadata.
Its weights and its arithmetic are float16, which is what the Neural Engine computes in.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convert.base import Base
from convert.files import listed
from convert.problem import written
from mlx_peft.core.border import Tensors
from mlx_peft.core.text import counted
from torch_ref.models.vit import VisionTransformer
from torch_ref.tools.export.graph import filled, quiet

with quiet():
    import coremltools
    from coremltools.converters.mil.frontend.milproto.load import load as load_program

INPUT, OUTPUT, PROBABILITIES = "image", "classLabel", "probabilities"
CLASSES = "classes"
"""The names in the metadata, as JSON."""
WEIGHTS = Path("Data", "com.apple.CoreML", "weights")
DEBUG = "executorch_debug_handle_mapping.json"
"""What coremltools leaves in a package besides its contents."""

FOLDED = ("attn_pool.latent", "attn_pool.q.")
"""What no image changes: the converter works it out, and keeps the result alone."""


class Classifier(VisionTransformer):
    """Pixels 0 to 255, ``(1, 3, size, size)``, to probabilities ``(1, classes)``: the package names the likeliest."""

    chooses = True
    described = ""
    scale: Tensor
    shift: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return self.probabilities(super().forward(x.permute(0, 2, 3, 1) * self.scale - self.shift))

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=-1)


class SeveralLabels(Classifier):
    """Pixels 0 to 255, ``(1, 3, size, size)``, to each class's own probability ``(1, classes)``."""

    chooses = False
    described = ", of which a picture may have several"

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()


FORMS: dict[str, type[Classifier]] = {"softmax": Classifier, "sigmoid": SeveralLabels}
"""By what makes probabilities of a task's logits."""


def form_of(base: Base) -> type[Classifier]:
    """What answers for a base's task. Raises ValueError where the task has no probabilities."""
    if base.task.activation not in FORMS:
        raise ValueError(f"Core ML packages are of classifiers, and the model's task is {base.task.name}")
    return FORMS[base.task.activation]


def write(path: Path, base: Base, tensors: Tensors, classes: Sequence[str]) -> None:
    """Writes the package ``path``. What is to be known of its images is in its metadata.

    Raises:
        ValueError: where the tensors are not the architecture's, or the task is no classification.
    """
    form = form_of(base)
    size, preprocessing = base.architecture.img_size, base.preprocessing
    for tensor in tensors.values():
        half(tensor)
    model = filled(form, base, tensors)
    mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    model.register_buffer("scale", 1 / (255 * std))
    model.register_buffer("shift", mean / std)
    with quiet():
        answer = (
            {"classifier_config": coremltools.ClassifierConfig(list(classes), OUTPUT)}
            if form.chooses
            else {"outputs": [coremltools.TensorType(name=PROBABILITIES, dtype=np.float32)]}
        )
        program = torch.export.export(model, (torch.zeros(1, 3, size, size),)).run_decompositions({})
        _without_aliases(program)
        package = coremltools.convert(
            program,
            convert_to="mlprogram",
            inputs=[
                coremltools.ImageType(name=INPUT, shape=(1, 3, size, size), color_layout=coremltools.colorlayout.RGB)
            ],
            **answer,
            minimum_deployment_target=coremltools.target.iOS16,
            compute_precision=coremltools.precision.FLOAT16,
            skip_model_load=True,
        )
        kinds = counted(len(classes), "class")
        package.short_description = f"{base.name}, an image classifier of {kinds}{form.described}"
        package.input_description[INPUT] = f"A square picture of {size} pixels; it is normalised inside."
        if form.chooses:
            package.output_description[OUTPUT] = "The likeliest class."
        else:
            package.output_description[PROBABILITIES] = f"Of each class, in the order of {CLASSES!r} in the metadata."
        package.user_defined_metadata.update({
            "model": base.name,
            **({} if form.chooses else {CLASSES: json.dumps(list(classes)), **written(base.task)}),
            **{name: json.dumps(value) for name, value in preprocessing.model_dump(mode="json").items()},
        })  # fmt: skip
        package.save(str(path))
    (path / DEBUG).unlink(missing_ok=True)


def _without_aliases(program: torch.export.ExportedProgram) -> None:
    """Removes the nodes that only rename a tensor, which coremltools does not know."""
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.alias.default:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    program.graph_module.recompile()


def prove(path: Path, base: Base, tensors: Tensors, classes: Sequence[str]) -> tuple[None, str]:
    """Opens the package again and checks the size of its picture, its classes and its weights; it runs on a Mac alone.

    Each matrix of the tensors must be one of the program's constants, its float16 bit for bit where that is a normal
    number. A vector need not be: the converter may have put a bias together with another.

    Raises:
        ValueError: where something differs.
    """
    with quiet():
        spec = coremltools.utils.load_spec(str(path))
        program = load_program(spec, spec.specificationVersion, str(path / WEIGHTS))
    size = base.architecture.img_size
    picture = spec.description.input[0].type.imageType
    if (picture.width, picture.height) != (size, size):
        raise ValueError(f"the package takes pictures of {picture.width} x {picture.height}, not {size} x {size}")
    names, constants = contents(program)
    if not form_of(base).chooses:
        names = json.loads(spec.description.metadata.userDefined.get(CLASSES, "[]"))
    if names != list(classes):
        raise ValueError(f"the package has the classes {names}")
    matrices = {
        name: flushed(half(tensor))
        for name, tensor in tensors.items()
        if tensor.ndim > 1 and not name.startswith(FOLDED)
    }
    held = {(constant.shape, flushed(constant).tobytes()) for constant in constants}
    if lost := [name for name, matrix in matrices.items() if (matrix.shape, matrix.tobytes()) not in held]:
        raise ValueError(f"the package does not hold {listed(lost)}")
    return None, (
        f"the package's input, {counted(len(names), 'class')} and {len(matrices)} weight matrices are the model's; "
        "what it computes can be seen on a Mac alone, and was not checked"
    )


def contents(program: Any) -> tuple[list[str], list[np.ndarray]]:
    """The classes of a program that is a classifier, and its constants of float16."""
    names: list[str] = []
    constants = []
    for operation in program.functions["main"].operations:
        if operation.op_type == "classify":
            names = [str(name) for name in operation.classes.val]
        elif operation.op_type == "const" and getattr(operation.outputs[0].val, "dtype", None) == np.float16:
            constants.append(np.asarray(operation.outputs[0].val))
    return names, constants


def half(tensor: np.ndarray) -> np.ndarray:
    """In float16. Raises ValueError where a number is too large for it."""
    with np.errstate(over="ignore"):
        rounded = tensor.astype(np.float16)
    if not np.isfinite(rounded).all():
        raise ValueError(f"its weights reach {np.abs(tensor).max():.1e}, and float16 ends at 65504")
    return rounded


def flushed(tensor: np.ndarray) -> np.ndarray:
    """A float16 tensor with zero for what is below its smallest normal number, 6.1e-5.

    The converter rounds what would become zero to the nearest number that is not, and a device may take all of these
    as zero.
    """
    return np.where(np.abs(tensor) < np.finfo(np.float16).tiny, np.float16(0), tensor)
