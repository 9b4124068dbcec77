"""A backend whose model has a few hundred bytes, and data to match: what is above is tested without a framework."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from convert.base import Base, load_base
from mlx_peft.adaptation.prefix import Prefix
from mlx_peft.artifacts import images
from mlx_peft.codes.quantizers import Quantizer
from mlx_peft.config.methods import MethodConfig
from mlx_peft.config.quantization import QAT
from mlx_peft.config.schema import Experiment, Precision
from mlx_peft.config.tokens import ReducerConfig
from mlx_peft.core.border import Device, Parameters, Tensors
from mlx_peft.core.world import ALONE, World
from mlx_peft.data import ArrayImages, Dataset, Split
from mlx_peft.protocols import loading
from mlx_peft.training import prepare
from mlx_peft.training.feed import Feed, feed
from mlx_peft.vit.architecture import Preprocessing
from mlx_peft.vit.attention import Explanation

CLASSES = ("red", "green", "blue")
MODEL = {
    "name": "vit_tiny_patch16_224",
    "weights": "none",
    "image_size": 8,
    "args": {"patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 1},
}


class Loss:
    """A loss that is not there before it is read."""

    def __init__(self, number: int, value: float, log: list[tuple[str, int]]) -> None:
        self.number, self.value, self.log = number, value, log

    def __float__(self) -> float:
        self.log.append(("read", self.number))
        return self.value


class FakeModel:
    """A head on ``dim`` features of an image's mean colour, so that its adapter is that of a linear probe."""

    prefix: Prefix | None = None
    network: Any = None

    def __init__(self, base: Base, num_classes: int) -> None:
        self.base = base
        self.head = {name: base.tensors[name].copy() for name in ("head.weight", "head.bias")}
        size = sum(value.size for value in self.head.values())
        self.parameters = Parameters(0, size, sum(tensor.size for tensor in base.tensors.values()))
        self.projection = np.random.default_rng(7).normal(size=(3, self.head["head.weight"].shape[1]))

    def features(self, images: np.ndarray) -> np.ndarray:
        if images.dtype == np.float32:
            return images
        found: np.ndarray = (images.astype(np.float32).mean((1, 2)) / 128 - 1) @ self.projection.astype(np.float32)
        return found

    def vectors(self, images: np.ndarray) -> np.ndarray:
        return self.features(images)[:, None]

    def logits(self, images: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.features(images) @ self.head["head.weight"].T + self.head["head.bias"]
        return found

    def adapter(self) -> Tensors:
        return {name: value.copy() for name, value in self.head.items()}

    def load_adapter(self, tensors: Tensors) -> None:
        if {name: value.shape for name, value in tensors.items()} != {n: v.shape for n, v in self.head.items()}:
            raise ValueError(f"expected {sorted(self.head)}")
        self.head = {name: value.copy() for name, value in tensors.items()}

    def merged(self, dequantize: bool = False) -> Tensors:
        return self.base.tensors | self.head

    def record(
        self, images: np.ndarray, observe: Callable[[str, np.ndarray], object], at: Collection[str] | None = None
    ) -> None:
        raise NotImplementedError

    def explain(self, images: np.ndarray, classes: Sequence[int] | None = None) -> Explanation:
        raise NotImplementedError

    def simulate(self, quantizers: Mapping[str, Quantizer]) -> None:
        raise NotImplementedError


class FakeTrainer:
    """Softmax regression with momentum on noisy colours; the noise depends on a counter, as dropout's would."""

    def __init__(self, base: Base, num_classes: int) -> None:
        self.model = FakeModel(base, num_classes)
        self.momentum = {name: np.zeros_like(value) for name, value in self.model.head.items()}
        self.count = 0
        self.log: list[tuple[str, int]] = []

    @property
    def step(self) -> int:
        return self.count

    def train_step(
        self, images: np.ndarray, targets: np.ndarray, lr: float, *, weight: float | None = None, observe: bool = False
    ) -> Loss:
        real, head = targets >= 0, self.model.head
        features = self.model.features(images[real])
        features += np.random.default_rng(self.count).normal(0, 0.1, features.shape).astype(np.float32)
        logits = features @ head["head.weight"].T + head["head.bias"]
        odds = np.exp(logits - logits.max(1, keepdims=True))
        odds /= odds.sum(1, keepdims=True)
        rows = np.arange(len(odds))
        loss = float(-np.log(odds[rows, targets[real]]).mean())
        odds[rows, targets[real]] -= 1
        gradients = {"head.weight": odds.T @ features / len(odds), "head.bias": odds.mean(0)}
        for name, gradient in gradients.items():
            self.momentum[name] = 0.9 * self.momentum[name] + gradient
            head[name] -= np.float32(lr) * self.momentum[name]
        self.log.append(("launch", self.count))
        self.count += 1
        return Loss(self.count - 1, loss, self.log)

    def scores(self) -> Tensors:
        return {}

    def mask(self, keep: Mapping[str, Sequence[bool]]) -> None:
        raise NotImplementedError

    def loss_and_gradients(self, images: np.ndarray, targets: np.ndarray, scale: float = 1.0) -> tuple[float, Tensors]:
        raise NotImplementedError

    def state(self) -> Tensors:
        slots = {f"momentum.{name}": value for name, value in self.momentum.items()}
        return self.model.adapter() | slots | {"count": np.array(self.count)}

    def load_state(self, state: Tensors) -> None:
        self.model.head = {name: state[name].copy() for name in self.model.head}
        self.momentum = {name: state[f"momentum.{name}"].copy() for name in self.momentum}
        self.count = int(state["count"])

    def peak_memory(self) -> int:
        return peak_memory()


def build_model(
    base: Base,
    num_classes: int,
    method: MethodConfig,
    *,
    seed: int = 0,
    qat: QAT | None = None,
    tokens: ReducerConfig | None = None,
    precision: Precision = "float32",
) -> FakeModel:
    return FakeModel(base, num_classes)


def build_trainer(experiment: Experiment, num_classes: int, base: Base) -> FakeTrainer:
    return FakeTrainer(base, num_classes)


def use(name: str) -> None:
    """Any device will do."""


def world() -> World:
    return ALONE


def computing() -> Device:
    return Device(None, forms_attention=False)


def version() -> str:
    return "fake 1.0 (cpu)"


def peak_memory() -> int:
    return 1000


def synchronize() -> None:
    pass


def saved_bytes(trainer: FakeTrainer, images: np.ndarray, targets: np.ndarray) -> None:
    return None


def step_bytes(trainer: FakeTrainer, step: Callable[[], object]) -> int:
    step()
    return 0


def multiply(batch: int, m: int, k: int, n: int, precision: Precision = "float32") -> None:
    return None


def resizing(images: np.ndarray, preprocessing: Preprocessing, size: int) -> Callable[[], None]:
    return lambda: None


def make_split(name: str, size: int, seed: int) -> Split:
    """Images of one noisy colour each, labelled by it; some labels are wrong, so that no epoch is perfect."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, size)
    pixels = rng.integers(0, 160, (size, 8, 8, 3)).astype(np.uint8)
    pixels[np.arange(size), :, :, labels] += 60
    wrong = rng.random(size) < 0.1
    return Split(name, ArrayImages.whole(pixels, name), np.where(wrong, (labels + 1) % 3, labels).astype(np.int64))


def make_dataset(*, val: bool = True, test: bool = True) -> Dataset:
    return Dataset(
        "colours",
        CLASSES,
        make_split("train", 44, 1),
        make_split("val", 21, 2) if val else None,
        make_split("test", 21, 3) if test else None,
    )


def make_experiment(**train_options: Any) -> Experiment:
    options = {"epochs": 3, "optimizer": {"name": "sgd", "lr": 0.1}, "log_every": 2} | train_options
    return Experiment.model_validate({
        "model": MODEL,
        "method": {"name": "linear"},
        "data": {"name": "colours", "batch_size": 8, "threads": 1},
        "train": options,
    })  # fmt: skip


def make_feed(experiment: Experiment, dataset: Dataset) -> Feed:
    return feed(experiment, dataset, load_base(experiment.model, len(CLASSES), 0))


def make_trainer() -> FakeTrainer:
    return FakeTrainer(load_base(make_experiment().model, len(CLASSES), 0), len(CLASSES))


def install(patch: Any, dataset: Dataset) -> None:
    """Puts this backend in the place of both, and ``dataset`` in the place of any."""
    for name in loading.BACKENDS:
        patch.setitem(loading.BACKENDS, name, "fake_backend")
    for module in (prepare, images):
        patch.setattr(module, "open_dataset", lambda config, watch=None: dataset)
