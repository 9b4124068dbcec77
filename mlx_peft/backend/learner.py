"""MLX as a backend: a model, its method and its optimiser as the engine's learner, each step one compiled function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map_with_path, tree_unflatten

from convert.base import Base
from mlx_peft.adaptation.prefix import frozen_prefix
from mlx_peft.backend import forks, methods
from mlx_peft.backend.blas import FAST
from mlx_peft.backend.losses import LOSSES
from mlx_peft.backend.methods import quantized, rounding, simulated
from mlx_peft.backend.models.preprocess import preprocess
from mlx_peft.backend.models.stochastic import randomness
from mlx_peft.backend.models.vit import VisionTransformer
from mlx_peft.backend.training import SCALES, Arrays, Slots, Update
from mlx_peft.codes.quantizers import Quantizer
from mlx_peft.config.schema import Experiment
from mlx_peft.core.border import Device, Parameters, Tensors, must_match
from mlx_peft.vit.architecture import Preprocessing
from mlx_peft.vit.parameters import is_head

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


def version() -> str:
    """``mlx 0.32.4 (cpu)``; it says where MLX runs on the reference BLAS."""
    blas = "" if FAST else ", reference BLAS: install OpenBLAS"
    return f"mlx {mx.__version__} ({mx.default_device().type.name}{blas})"


def synchronize() -> None:
    """Waits until everything that was asked for is computed."""
    mx.synchronize()


def computing() -> Device:
    """What MLX computes on. The CPU's attention is one product after the other; the fused kernels are of others."""
    on_cpu = mx.default_device().type == mx.cpu
    shared = on_cpu or mx.metal.is_available()
    # A device that does not say how many bytes it has is taken to have as many as any.
    return Device(None if shared else mx.device_info().get("memory_size", 2**40), forms_attention=on_cpu)


def device_peak() -> int | None:
    """Bytes of the accelerator's memory that were in use at once; None on the CPU."""
    return mx.get_peak_memory() if mx.default_device().type == mx.gpu else None


def multiply(batch: int, m: int, k: int, n: int) -> Callable[[], None]:
    """For benchmarks: a function that computes one ``(batch, m, k) @ (batch, k, n)`` and waits for it."""
    a, b = mx.random.normal((batch, m, k)), mx.random.normal((batch, k, n))
    mx.eval(a, b)
    return lambda: mx.eval(a @ b)


def resizing(images: np.ndarray, preprocessing: Preprocessing, size: int) -> Callable[[], None]:
    """For benchmarks: a function that makes a batch of uint8 images a model's input and waits for it."""
    prepare = mx.compile(lambda pixels: preprocess(pixels, preprocessing, size, mx.float32))
    return lambda: mx.eval(prepare(mx.array(images)))


def to_mlx(tensor: np.ndarray) -> mx.array:
    """A tensor of timm's layout in MLX's: the patch convolution, the only one of four axes, has its channels last."""
    return mx.array(tensor.transpose(0, 2, 3, 1) if tensor.ndim == 4 else tensor)


def to_timm(array: mx.array) -> np.ndarray:
    """The reverse of ``to_mlx``, in float32 and C order; the words of codes as they are."""
    if array.dtype == mx.uint32:
        return to_numpy(array)
    tensor = to_numpy(array.astype(mx.float32))
    return np.ascontiguousarray(tensor.transpose(0, 3, 1, 2)) if tensor.ndim == 4 else tensor


def to_numpy(array: mx.array) -> np.ndarray:
    """An array of its own type, in C order: NumPy would take MLX's strides over."""
    return np.array(array, order="C")


def load(model: VisionTransformer, tensors: Tensors) -> None:
    """Sets parameters by name. Raises ValueError where a name is unknown or a shape differs."""
    known = dict(tree_flatten(model.parameters()))
    arrays = {name: to_mlx(tensor) for name, tensor in tensors.items()}
    for name, array in arrays.items():
        if name not in known:
            raise ValueError(f"{name} is no parameter of the model")
        if known[name].shape != array.shape:
            raise ValueError(f"{name} has the shape {tensors[name].shape}")
    model.update(tree_unflatten(list(arrays.items())))


def fill(model: VisionTransformer, base: Base) -> None:
    """Sets a base's weights; with what it says of quantisation, the linear layers of the blocks are quantised."""
    if base.quantization is not None and base.packed:
        quantized.quantize(model, base.quantization)
    load(model, base.tensors)
    if base.quantization is not None and not base.packed:
        quantized.quantize(model, base.quantization)


def trained(model: VisionTransformer) -> Arrays:
    """What is trained, by name."""
    return dict(tree_flatten(model.trainable_parameters()))


def stored(model: VisionTransformer) -> Arrays:
    """What an adapter is made of, by name: what is trained, and what the method keeps beside it."""
    return trained(model) | methods.kept(model)


def load_adapter(model: VisionTransformer, tensors: Tensors) -> None:
    """Sets all that ``stored`` has, or nothing. Raises ValueError where names or shapes differ."""
    if differing := tensors.keys() ^ stored(model).keys():
        raise ValueError(f"these tensors are missing or unknown: {', '.join(sorted(differing))}")
    load(model, tensors)


class Learner:
    """See ``mlx_peft.training.backend.Learner``. One thread must own it: MLX's lazy arrays belong to theirs."""

    def __init__(self, experiment: Experiment, num_classes: int, base: Base):
        self.experiment, self.base = experiment, base.without_tensors()  # the model has them now
        self.dtype = DTYPES[experiment.train.precision]
        self.model = VisionTransformer(
            base.architecture, num_classes, experiment.model.drop_path, experiment.model.head_dropout
        )
        self.model.checkpointing = experiment.train.gradient_checkpointing
        fill(self.model, base)
        methods.apply(self.model, experiment.method, experiment.seed, experiment.qat)
        self.trained = trained(self.model)
        frozen = [(n, p) for n, p in tree_flatten(self.model.parameters()) if n not in self.trained]
        exact = rounding.exact(self.model)
        cast = [
            (name, p.astype(self.dtype))
            for name, p in frozen
            if not experiment.method.keeps(name) and name not in exact and mx.issubdtype(p.dtype, mx.floating)
        ]
        self.model.update(tree_unflatten(cast))
        codes = quantized.sizes(self.model)
        sizes = {name: p.size for name, p in self.trained.items()}
        head = sum(size for name, size in sizes.items() if is_head(name))
        self.parameters = Parameters(
            adapter=sum(sizes.values()) - head,
            head=head,
            total=sum(sizes.values()) + sum(codes.get(name, p.size) for name, p in frozen),
        )
        names = [name for name, _ in tree_flatten(self.model.parameters())]
        drop_path = experiment.model.drop_path
        self.prefix = frozen_prefix(base.architecture, drop_path, names, self.trained, base.quantization)
        self.importance = methods.importance(self.model, experiment.method)
        self.update = Update(experiment.train, self.trained, experiment.lr_ratio, experiment.decays, self.importance)
        self.slots = self.update.initial_slots(self.trained)
        self.step = 0
        self.keep: tuple[Mapping[str, Sequence[bool]], Arrays] = ({}, {})  # as ``mask`` had it last, and on the device
        self._compile()
        mx.eval(self.model.parameters(), self.slots)
        mx.reset_peak_memory()

    def _compile(self) -> None:
        """At the first call of each, from when on it holds the frozen parameters as it found them."""
        # Both without and with an observation.
        self._step = {observe: mx.compile(partial(self._whole_step, observe)) for observe in (False, True)}
        self._gradients = mx.compile(self._loss_and_gradients)
        self._update = {observe: mx.compile(partial(self.update, observe=observe)) for observe in (False, True)}
        self._forward = mx.compile(self._evaluate)
        self._prefix = mx.compile(self._features)

    # Traced functions: everything that changes comes in as an argument and goes out as a result.

    def _input(self, images: mx.array) -> mx.array:
        return preprocess(images, self.base.preprocessing, self.base.architecture.img_size, self.dtype)

    def _logits(self, inputs: mx.array) -> mx.array:
        if inputs.dtype == mx.uint8:
            return self.model(self._input(inputs))
        return self.model.suffix(inputs.astype(self.dtype), self.prefix.end)

    def _features(self, images: mx.array) -> mx.array:
        self.model.eval()
        return self.model.prefix(self._input(images), self.prefix.end).astype(mx.float32)

    def _loss(
        self, parameters: Arrays, images: mx.array, targets: mx.array, count: mx.array, parts: int = 1
    ) -> mx.array:
        self.model.update(tree_unflatten(list(parameters.items())))
        # First, since gradient checkpointing leaves parameters of its own tracing in the model.
        penalty = methods.penalty(self.model, self.experiment.method) / parts
        loss = LOSSES[self.base.task.name]
        return loss(self._logits(images), targets, count, self.experiment.train.label_smoothing) + penalty

    def _loss_and_gradients(
        self, parameters: Arrays, images: mx.array, targets: mx.array, count: mx.array, scale: Any, key: mx.array
    ) -> tuple[mx.array, Arrays]:
        def scaled(parameters: Arrays) -> tuple[mx.array, mx.array]:
            loss = self._loss(parameters, images, targets, count, self.experiment.train.accumulate)
            return loss * scale, loss

        self.model.train()
        with randomness(key):
            (_, loss), gradients = mx.value_and_grad(scaled)(parameters)
        return loss, gradients

    def _whole_step(
        self, observe: bool, parameters: Arrays, slots: Slots, images: mx.array, targets: mx.array, count: mx.array,
        lr: mx.array, key: mx.array,
    ) -> tuple[Arrays, Slots, mx.array]:  # fmt: skip
        scale = self.update.scale(slots)
        loss, gradients = self._loss_and_gradients(parameters, images, targets, count, scale, key)
        return *self.update(parameters, slots, gradients, lr, observe), loss

    def _evaluate(self, parameters: Arrays, images: mx.array) -> mx.array:
        self.model.eval()
        self.model.update(tree_unflatten(list(parameters.items())))
        return self._logits(images).astype(mx.float32)

    # The protocol.

    def train_step(
        self, images: np.ndarray, targets: np.ndarray, lr: float, *, weight: float | None = None, observe: bool = False
    ) -> mx.array:
        forks.check()
        count = mx.array(self.base.task.total_weight(targets) if weight is None else weight, mx.float32)
        seed, parts = self.experiment.seed << 32 | self.step, self.experiment.train.accumulate
        if parts == 1:
            self.trained, self.slots, loss = self._step[observe](
                self.trained, self.slots, mx.array(images), mx.array(targets), count, mx.array(lr), mx.random.key(seed)
            )
        else:
            keys = mx.random.split(mx.random.key(seed), parts)
            loss = self._accumulated_step(images, targets, count, lr, keys, observe)
        self.step += 1
        mx.async_eval(loss, self.trained, self.slots)
        self._settle()
        return loss

    def _accumulated_step(
        self, images: np.ndarray, targets: np.ndarray, count: mx.array, lr: float, keys: mx.array, observe: bool
    ) -> mx.array:
        loss, total = mx.array(0.0), None
        scale = self.update.scale(self.slots)
        for key, x, y in zip(keys, np.split(images, len(keys)), np.split(targets, len(keys)), strict=True):
            part, gradients = self._gradients(self.trained, mx.array(x), mx.array(y), count, mx.array(scale), key)
            total = gradients if total is None else {name: total[name] + g for name, g in gradients.items()}
            loss = loss + part
            mx.eval(loss, total)  # lets go of this part's activations before the next
        self.trained, self.slots = self._update[observe](self.trained, self.slots, total, mx.array(lr))
        return loss

    def scores(self) -> Tensors:
        forks.check()
        if self.importance is None:
            return {}
        found = methods.scores(self.model, self.experiment.method, self.importance.scores(self.slots))
        mx.eval(found)
        return {adapter: np.array(values) for adapter, values in found.items()}

    def mask(self, keep: Mapping[str, Sequence[bool]]) -> None:
        if keep is not self.keep[0]:
            masks = methods.masks(self.model, self.experiment.method, keep)
            self.keep = keep, {name: mx.array(mask) for name, mask in masks.items()}
        self.trained |= {name: mx.where(mask, self.trained[name], 0.0) for name, mask in self.keep[1].items()}
        self._settle()

    def _settle(self) -> None:
        """Puts real arrays back where tracing left its own."""
        self.model.update(tree_unflatten(list(self.trained.items())))

    def features(self, images: np.ndarray) -> np.ndarray:
        forks.check()
        return np.array(self._prefix(mx.array(images)))

    def logits(self, images: np.ndarray) -> np.ndarray:
        forks.check()
        logits = np.array(self._forward(self.trained, mx.array(images)))
        self._settle()
        return logits

    def loss_and_gradients(self, images: np.ndarray, targets: np.ndarray, scale: float = 1.0) -> tuple[float, Tensors]:
        def scaled(*batch: mx.array) -> mx.array:
            return self._loss(*batch) * scale

        forks.check()
        self.model.train()
        count = mx.array(self.base.task.total_weight(targets), mx.float32)
        loss, gradients = mx.value_and_grad(scaled)(self.trained, mx.array(images), mx.array(targets), count)
        self._settle()
        return float(loss) / scale, {name: to_timm(g / scale) for name, g in gradients.items()}

    def adapter(self) -> Tensors:
        forks.check()
        return {name: to_timm(p) for name, p in stored(self.model).items()}

    def load_adapter(self, tensors: Tensors) -> None:
        load_adapter(self.model, tensors)
        self.trained = trained(self.model)
        if methods.kept(self.model):
            self._compile()

    def merged(self, dequantize: bool = False) -> Tensors:
        forks.check()
        replaced = methods.merge(self.model, dequantize)
        tensors = {name: to_timm(p) for name, p in tree_flatten(self.model.parameters())}
        methods.unmerge(self.model, replaced)
        return tensors

    def record(self, images: np.ndarray, observe: Callable[[str, np.ndarray], object]) -> None:
        forks.check()
        self.model.eval()
        x = self._input(mx.array(images))
        simulated.record(self.model, x, lambda point, x: observe(point, np.array(x.astype(mx.float32))))

    def simulate(self, quantizers: Mapping[str, Quantizer]) -> None:
        simulated.simulate(self.model, quantizers)
        self._compile()

    def state(self) -> Tensors:
        forks.check()
        arrays = tree_flatten({"parameters": self.trained | methods.kept(self.model), "slots": self.slots})
        return {name: to_numpy(a) for name, a in arrays} | {"step": np.array(self.step)}

    def load_state(self, state: Tensors) -> None:
        arrays = tree_flatten({"parameters": stored(self.model), "slots": self.slots})
        expected = {name: a.shape for name, a in arrays} | {"step": ()}
        must_match(state, expected, optional=[f"slots.{name}" for name in SCALES])
        # Same nesting and same order: a compiled function takes its arguments' leaves as they come.
        parameters = {name: mx.array(state[f"parameters.{name}"]) for name in stored(self.model)}
        self.model.update(tree_unflatten(list(parameters.items())))
        self.trained = {name: parameters[name] for name in self.trained}
        self.slots = tree_map_with_path(lambda name, slot: mx.array(state.get(f"slots.{name}", slot)), self.slots)
        self.step = int(state["step"])
        self._compile()
        self._settle()

    def peak_memory(self) -> int:
        return mx.get_peak_memory()


def build(experiment: Experiment, num_classes: int, base: Base) -> Learner:
    """A learner on MLX's default device."""
    if mx.metal.is_available():  # keep the model's pages resident, and freed ones within bounds; unverified on Metal
        working_set = mx.device_info()["max_recommended_working_set_size"]
        mx.set_wired_limit(working_set)
        mx.set_cache_limit(working_set // 4)
    return Learner(experiment, num_classes, base)
