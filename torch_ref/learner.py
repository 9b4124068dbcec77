"""PyTorch as a backend: a model, its method and its optimiser as the engine's learner, on CUDA where there is one."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from convert.base import Base
from mlx_peft.adaptation.prefix import frozen_prefix
from mlx_peft.codes.quantizers import Quantizer
from mlx_peft.config.schema import Experiment
from mlx_peft.core.border import Device, Parameters, Tensors, must_match
from mlx_peft.vit.architecture import Preprocessing
from mlx_peft.vit.parameters import is_head
from torch_ref import methods
from torch_ref.losses import LOSSES
from torch_ref.methods import quantized, rounding, simulated
from torch_ref.models.preprocess import preprocess
from torch_ref.models.stochastic import randomness
from torch_ref.models.vit import VisionTransformer
from torch_ref.saved import saved_bytes
from torch_ref.training import SCALES, Arrays, Update

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def device() -> torch.device:
    """CUDA's first device where there is one, the CPU otherwise."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def version() -> str:
    """``torch 2.14.1 (cpu)``"""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return f"torch {torch.__version__} ({name})"


def synchronize() -> None:
    """Waits until everything that was asked for is computed."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def computing() -> Device:
    """What PyTorch computes on. Attention is a fused kernel's, on the CPU too."""
    memory = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
    return Device(memory, forms_attention=False)


def device_peak() -> int | None:
    """Bytes of the accelerator's memory that were in use at once; None on the CPU."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def multiply(batch: int, m: int, k: int, n: int) -> Callable[[], None]:
    """For benchmarks: a function that computes one ``(batch, m, k) @ (batch, k, n)`` and waits for it."""
    a, b = torch.randn(batch, m, k, device=device()), torch.randn(batch, k, n, device=device())

    def product() -> None:
        torch.matmul(a, b)
        synchronize()

    return product


def resizing(images: np.ndarray, preprocessing: Preprocessing, size: int) -> Callable[[], None]:
    """For benchmarks: a function that makes a batch of uint8 images a model's input and waits for it."""

    def prepare() -> None:
        preprocess(torch.from_numpy(images).to(device()), preprocessing, size, torch.float32)
        synchronize()

    return prepare


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A tensor on the host, in float32, or the words of codes; a copy, so that the next step does not change it."""
    if tensor.dtype == torch.uint32:
        return tensor.cpu().numpy().copy()
    return tensor.detach().float().cpu().numpy().copy()


@torch.no_grad()
def load(model: VisionTransformer, tensors: Tensors) -> None:
    """Sets parameters by name. Raises ValueError where a name is unknown or a shape differs."""
    known = dict(model.named_parameters())
    for name, tensor in tensors.items():
        if name not in known:
            raise ValueError(f"{name} is no parameter of the model")
        if known[name].shape != tensor.shape:
            raise ValueError(f"{name} has the shape {tensor.shape}")
    for name, tensor in tensors.items():
        known[name].copy_(torch.from_numpy(np.asarray(tensor)))


def fill(model: VisionTransformer, base: Base) -> None:
    """Sets a base's weights; with what it says of quantisation, the linear layers of the blocks are quantised."""
    if base.quantization is not None and base.packed:
        quantized.quantize(model, base.quantization)
    load(model, base.tensors)
    if base.quantization is not None and not base.packed:
        quantized.quantize(model, base.quantization)


def trained(model: VisionTransformer) -> Arrays:
    """What is trained, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def stored(model: VisionTransformer) -> Arrays:
    """What an adapter is made of, by name: what is trained, and what the method keeps beside it."""
    return trained(model) | methods.kept(model)


def load_adapter(model: VisionTransformer, tensors: Tensors) -> None:
    """Sets all that ``stored`` has, or nothing. Raises ValueError where names or shapes differ."""
    if differing := tensors.keys() ^ stored(model).keys():
        raise ValueError(f"these tensors are missing or unknown: {', '.join(sorted(differing))}")
    load(model, tensors)


class Learner:
    """See ``mlx_peft.training.backend.Learner``."""

    def __init__(self, experiment: Experiment, num_classes: int, base: Base):
        self.experiment, self.base = experiment, base.without_tensors()  # the model has them now
        self.dtype, self.device = DTYPES[experiment.train.precision], device()
        self.model = VisionTransformer(
            base.architecture, num_classes, experiment.model.drop_path, experiment.model.head_dropout
        )
        self.model.checkpointing = experiment.train.gradient_checkpointing
        fill(self.model, base)
        methods.apply(self.model, experiment.method, experiment.seed, experiment.qat)
        self.model.to(self.device)
        self.trained = trained(self.model)
        frozen = [(n, p) for n, p in self.model.named_parameters() if not p.requires_grad]
        exact = rounding.exact(self.model)
        for name, p in frozen:
            if not experiment.method.keeps(name) and name not in exact and p.is_floating_point():
                p.data = p.data.to(self.dtype)
        codes = quantized.sizes(self.model)
        sizes = {name: p.numel() for name, p in self.trained.items()}
        head = sum(size for name, size in sizes.items() if is_head(name))
        self.parameters = Parameters(
            adapter=sum(sizes.values()) - head,
            head=head,
            total=sum(sizes.values()) + sum(codes.get(name, p.numel()) for name, p in frozen),
        )
        names = [name for name, _ in self.model.named_parameters()]
        drop_path = experiment.model.drop_path
        self.prefix = frozen_prefix(base.architecture, drop_path, names, self.trained, base.quantization)
        self.importance = methods.importance(self.model, experiment.method)
        self.update = Update(experiment.train, self.trained, experiment.lr_ratio, experiment.decays, self.importance)
        self.keep: tuple[Mapping[str, Sequence[bool]], Arrays] = ({}, {})  # as ``mask`` had it last, and on the device
        self.step = 0
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def _input(self, images: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(images).to(self.device, non_blocking=True)
        return preprocess(pixels, self.base.preprocessing, self.base.architecture.img_size, self.dtype)

    def _logits(self, inputs: np.ndarray) -> Tensor:
        if inputs.dtype == np.uint8:
            return self.model(self._input(inputs))
        features = torch.from_numpy(inputs).to(self.device, non_blocking=True)
        return self.model.suffix(features.to(self.dtype), self.prefix.end)

    def _loss(self, images: np.ndarray, targets: np.ndarray, count: float, parts: int = 1) -> Tensor:
        labels = torch.from_numpy(targets).to(self.device, non_blocking=True)
        penalty = methods.penalty(self.model, self.experiment.method) / parts
        loss = LOSSES[self.base.task.name]
        return loss(self._logits(images), labels, count, self.experiment.train.label_smoothing) + penalty

    # The protocol.

    def train_step(
        self, images: np.ndarray, targets: np.ndarray, lr: float, *, weight: float | None = None, observe: bool = False
    ) -> Tensor:
        self.model.train()
        count = self.base.task.total_weight(targets) if weight is None else weight
        parts = self.experiment.train.accumulate
        loss, scale = torch.zeros((), device=self.device), self.update.scale()
        with randomness(self.experiment.seed << 32 | self.step):
            for x, y in zip(np.split(images, parts), np.split(targets, parts), strict=True):
                part = self._loss(x, y, count, parts)
                (part * scale).backward()
                loss += part.detach()
        self.step += 1  # first, so that one that is broken off in the middle is known by it
        self.update(lr, observe)
        return loss

    @torch.no_grad()
    def scores(self) -> Tensors:
        if self.importance is None:
            return {}
        found = methods.scores(self.model, self.experiment.method, self.importance.scores(self.update.averages))
        return {adapter: to_numpy(values) for adapter, values in found.items()}

    @torch.no_grad()
    def mask(self, keep: Mapping[str, Sequence[bool]]) -> None:
        if keep is not self.keep[0]:
            masks = methods.masks(self.model, self.experiment.method, keep)
            self.keep = keep, {name: torch.from_numpy(~mask).to(self.device) for name, mask in masks.items()}
        for name, masked in self.keep[1].items():
            self.trained[name].masked_fill_(masked, 0.0)

    @torch.inference_mode()
    def features(self, images: np.ndarray) -> np.ndarray:
        self.model.eval()
        return to_numpy(self.model.prefix(self._input(images), self.prefix.end))

    @torch.inference_mode()
    def logits(self, images: np.ndarray) -> np.ndarray:
        self.model.eval()
        return to_numpy(self._logits(images))

    def loss_and_gradients(self, images: np.ndarray, targets: np.ndarray, scale: float = 1.0) -> tuple[float, Tensors]:
        self.model.train()
        loss = self._loss(images, targets, self.base.task.total_weight(targets))
        gradients = torch.autograd.grad(loss * scale, list(self.trained.values()))
        found = {name: to_numpy(g / scale) for name, g in zip(self.trained, gradients, strict=True)}
        return float(loss.detach()), found

    def adapter(self) -> Tensors:
        return {name: to_numpy(p) for name, p in stored(self.model).items()}

    def load_adapter(self, tensors: Tensors) -> None:
        load_adapter(self.model, tensors)

    def merged(self, dequantize: bool = False) -> Tensors:
        replaced = methods.merge(self.model, dequantize)
        tensors = {name: to_numpy(p) for name, p in self.model.named_parameters()}
        methods.unmerge(self.model, replaced)
        return tensors

    @torch.inference_mode()
    def record(self, images: np.ndarray, observe: Callable[[str, np.ndarray], object]) -> None:
        self.model.eval()
        simulated.record(self.model, self._input(images), lambda point, x: observe(point, to_numpy(x)))

    def simulate(self, quantizers: Mapping[str, Quantizer]) -> None:
        simulated.simulate(self.model, quantizers)

    def state(self) -> Tensors:
        arrays = {f"parameters.{name}": p.detach() for name, p in stored(self.model).items()} | self.update.state()
        return {name: a.cpu().numpy().copy() for name, a in arrays.items()} | {"step": np.array(self.step)}

    def load_state(self, state: Tensors) -> None:
        expected = {f"parameters.{name}": p.shape for name, p in stored(self.model).items()} | {"step": ()}
        must_match(state, expected | self.update.shapes(state), optional=SCALES)
        load(self.model, {name: state[f"parameters.{name}"] for name in stored(self.model)})
        self.update.load_state({name: torch.from_numpy(a.copy()) for name, a in state.items()})
        self.step = int(state["step"])

    def saved_bytes(self, images: np.ndarray, targets: np.ndarray) -> int:
        """Bytes of activations that a step's forward pass keeps for its backward one."""
        self.model.train()
        return saved_bytes(lambda: self._loss(images, targets, len(targets)), self.model.parameters())

    def peak_memory(self) -> int:
        unit = 1 if sys.platform == "darwin" else 1024
        return device_peak() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def build(experiment: Experiment, num_classes: int, base: Base) -> Learner:
    """A learner on ``device()``."""
    torch.backends.cudnn.allow_tf32 = False  # the patch convolution in float32, like everything else
    return Learner(experiment, num_classes, base)
