"""Merged models of every kind that an export may meet, and a reader of Core ML's programs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch.onnx._internal.exporter._registration import ONNXRegistry

import torch_ref.entry
from convert.base import Base, load_base
from mlx_peft.artifacts.export import RUNTIMES, Exported, export_model
from mlx_peft.config.schema import Experiment
from mlx_peft.core.border import Tensors

CLASSES = ("cat", "dog", 'a "fox"', "Wölfe", "5")
ARGS: dict[str, Any] = {"depth": 1, "embed_dim": 48, "num_heads": 3, "patch_size": 8}
MODELS = {
    "distilled": "deit_tiny_distilled_patch16_224.fb_in1k",
    "registers": "vit_small_patch14_reg4_dinov2.lvd142m",
    "average pooling": "vit_medium_patch16_gap_256.sw_in12k_ft_in1k",
    "attention pooling": "vit_base_patch16_siglip_224.webli",
    "SwiGLU": "vit_giant_patch14_dinov2.lvd142m",
}


@pytest.fixture(scope="session")
def classes() -> tuple[str, ...]:
    return CLASSES


@pytest.fixture(scope="session")
def merged() -> Callable[[str], tuple[Base, Tensors]]:
    """``merged("registers")``: a small model with a LoRA of no small effect merged into it, by torch."""

    @cache
    def build(kind: str) -> tuple[Base, Tensors]:
        experiment = Experiment.model_validate({
            "model": {"name": MODELS[kind], "weights": "none", "image_size": 32, "args": ARGS},
            "method": {"name": "lora", "rank": 4, "targets": ["attention", "mlp"]},
            "data": {"name": "digits"},
        })  # fmt: skip
        base = load_base(experiment.model, len(CLASSES), 0)
        random = np.random.default_rng(0)
        for tensor in base.tensors.values():
            tensor += random.normal(0, 0.1, tensor.shape).astype(np.float32)
        trainer = torch_ref.entry.build_trainer(experiment, len(CLASSES), base)
        adapter = trainer.model.adapter()
        trainer.model.load_adapter(
            {n: t + random.normal(0, 0.1, t.shape).astype(np.float32) for n, t in adapter.items()}
        )
        tensors = trainer.model.merged()
        change = np.linalg.norm(tensors["blocks.0.attn.qkv.weight"] - base.tensors["blocks.0.attn.qkv.weight"])
        assert change > 0.1
        return base, tensors

    return build


@pytest.fixture(scope="session", autouse=True)
def traced_once() -> Iterator[None]:
    """torch traces a model of the same modules and tensors once, which takes seconds: what is made of the graph, its
    metadata and its files, is made each time. Its table of ONNX operations, half of each export, is read once."""
    trace, programs = torch.onnx.export, {}

    def traced(model: torch.nn.Module, *arguments: Any, **options: Any) -> Any:
        tensors = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values()))
        key = (repr(model), repr(options), tensors.hexdigest())
        if key not in programs:
            programs[key] = trace(model, *arguments, **options)
        return programs[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", traced)
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib)))
        yield


@pytest.fixture(scope="session")
def exported(merged: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Exported]:
    """``exported("onnx", "registers")``: the merged model, written and proved; its file is the first of ``files``."""

    @cache
    def write(kind: str, model: str) -> Exported:
        base, tensors = merged(model)
        out = tmp_path_factory.mktemp(kind) / f"model{RUNTIMES[kind].suffix}"
        return export_model(kind, out, base=base, tensors=tensors, classes=CLASSES)

    return write


@pytest.fixture(scope="session")
def timms() -> Callable[[str, Base, Tensors, torch.Tensor], np.ndarray]:
    """The logits of timm's own class for normalised images ``(batch, 3, size, size)``."""

    def logits(kind: str, base: Base, tensors: Tensors, images: torch.Tensor) -> np.ndarray:
        name = MODELS[kind].partition(".")[0]
        model = timm.create_model(name, num_classes=len(CLASSES), img_size=32, **ARGS)
        model.load_state_dict({name: torch.from_numpy(np.asarray(tensor)) for name, tensor in tensors.items()})
        with torch.inference_mode():
            return model.eval()(images).numpy()

    return logits


@pytest.fixture(scope="session")
def run_program() -> Callable[[Any, np.ndarray], np.ndarray]:
    """What a program of Core ML's computes, in float32: the probabilities that it hands to ``classify``.

    Written from Apple's definitions of its operations, as nothing but a Mac runs them.
    """
    return evaluate


def evaluate(program: Any, image: np.ndarray) -> np.ndarray:
    function = program.functions["main"]
    (name,) = function.inputs
    values: dict[str, Any] = {name: torch.from_numpy(image)}

    def of(variable: Any) -> Any:
        if isinstance(variable, (list, tuple)):
            return [of(one) for one in variable]
        if variable.name in values:
            return values[variable.name]
        value = variable.val
        return torch.from_numpy(np.asarray(value, np.float32)) if is_float(value) else value

    for operation in function.operations:
        if operation.op_type == "const":
            continue
        inputs = {key: of(value) for key, value in operation.inputs.items() if value is not None}
        if operation.op_type == "classify":
            return inputs["probabilities"].numpy()
        found = OPERATIONS[operation.op_type](**inputs)
        for variable, value in zip(operation.outputs, found if isinstance(found, tuple) else (found,), strict=True):
            values[variable.name] = value
            assert tuple(value.shape) == tuple(variable.shape), operation
    raise AssertionError("the program classifies nothing")


def is_float(value: Any) -> bool:
    return np.asarray(value).dtype.kind == "f"


def slice_by_index(x, begin, end, begin_mask=None, end_mask=None, squeeze_mask=None, stride=None):
    assert stride is None or set(map(int, stride)) == {1}
    rank = x.dim()
    flags = [[False] * rank if mask is None else list(map(bool, mask)) for mask in (begin_mask, end_mask, squeeze_mask)]
    index = []
    for axis in range(rank):
        first, last = (None if flags[i][axis] else int((begin, end)[i][axis]) for i in (0, 1))
        index.append(int(begin[axis]) if flags[2][axis] else slice(first, last))
    return x[tuple(index)]


def gelu(x, mode):
    return F.gelu(x, approximate={"EXACT": "none", "TANH_APPROXIMATION": "tanh"}[str(mode)])


def matmul(x, y, transpose_x, transpose_y):
    return (x.mT if transpose_x else x) @ (y.mT if transpose_y else y)


def layer_norm(x, axes, epsilon, gamma=None, beta=None):
    return F.layer_norm(x, [x.shape[int(axis)] for axis in axes], gamma, beta, float(epsilon))


def conv(x, weight, strides, pad_type, dilations, groups, pad, bias=None):
    assert (str(pad_type), int(groups), set(map(int, dilations))) == ("valid", 1, {1})
    return F.conv2d(x, weight, bias, stride=tuple(map(int, strides)))


OPERATIONS: dict[str, Callable[..., Any]] = {
    "cast": lambda x, dtype: x.float(),
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "real_div": lambda x, y: x / y,
    "abs": torch.abs,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "sigmoid": torch.sigmoid,
    "silu": lambda x: F.silu(x),
    "gelu": gelu,
    "softmax": lambda x, axis: torch.softmax(x, int(axis)),
    "layer_norm": layer_norm,
    "conv": conv,
    "linear": lambda x, weight, bias=None: F.linear(x, weight, bias),
    "matmul": matmul,
    "reshape": lambda x, shape: x.reshape(tuple(map(int, shape))),
    "transpose": lambda x, perm: x.permute(tuple(map(int, perm))),
    "concat": lambda values, axis, interleave: torch.cat(values, int(axis)),
    "split": lambda x, axis, split_sizes: tuple(torch.split(x, list(map(int, split_sizes)), int(axis))),
    "squeeze": lambda x, axes: x.squeeze(tuple(map(int, axes))),
    "reduce_mean": lambda x, axes, keep_dims: x.mean(tuple(map(int, axes)), bool(keep_dims)),
    "reduce_max": lambda x, axes, keep_dims: x.amax(tuple(map(int, axes)), bool(keep_dims)),
    "slice_by_index": slice_by_index,
}


@pytest.fixture
def nothing_left(tmp_path: Path) -> Callable[[], bool]:
    return lambda: not list(tmp_path.iterdir())
