"""The experiment: everything a user may write in a configuration file, checked before any work is done."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from mlx_peft.config.augment import Augment as Augment  # as names of the schema too
from mlx_peft.config.augment import ColorJitter as ColorJitter
from mlx_peft.config.augment import Erasing as Erasing
from mlx_peft.config.augment import RandAugment as RandAugment
from mlx_peft.config.data import Cache as Cache
from mlx_peft.config.data import Columns as Columns
from mlx_peft.config.data import Data as Data
from mlx_peft.config.data import Split as Split
from mlx_peft.config.devices import DeviceName
from mlx_peft.config.methods import Method
from mlx_peft.config.quantization import QAT, Quantization
from mlx_peft.config.rates import Rates
from mlx_peft.config.section import Section
from mlx_peft.config.tokens import Reducer
from mlx_peft.config.weights import on_hub
from mlx_peft.core.bounds import (
    LARGEST,
    BatchSize,
    Gigabytes,
    Name,
    NotNegative,
    Positive,
    Share,
    Steps,
    usable,
)
from mlx_peft.vit.architecture import MOST_PIXELS

Precision = Literal["float32", "tf32", "bfloat16", "float16"]
Argument = bool | Annotated[int, Field(ge=-(2**63), lt=2**63)] | Annotated[float, Field(ge=-LARGEST, le=LARGEST)] | Name
"""A field of an architecture may be given one of these; the architecture itself knows more."""


class Model(Section):
    name: Name = Field(description="a timm name, with or without a tag: vit_small_patch16_224.augreg_in21k_ft_in1k")
    weights: Annotated[str, AfterValidator(usable)] = Field(
        "timm",
        description="timm, none (random), package:NAME (shipped), OWNER/NAME (of the hub), or a file or folder",
    )
    image_size: int | None = Field(None, ge=1, le=MOST_PIXELS, description="pixels; null: the architecture's own")
    args: dict[Name, Argument | None] = Field(
        default_factory=dict, description="fields of the architecture to change, such as depth"
    )
    head: Literal["new", "keep"] | None = Field(
        None,
        description="a new classifier, or the weights' own; null: theirs where its classes are known to be the data's",
    )
    drop_path: Share = Field(0.0, description="stochastic depth of the last block; linear from 0")
    head_dropout: Share = Field(0.0, description="dropout before the head")

    @property
    def is_shipped(self) -> bool:
        """Whether the weights come with the package."""
        return self.weights.startswith("package:")

    @property
    def is_local(self) -> bool:
        """Whether the weights are a file or a folder of this machine; else they mean the same on any."""
        usual = self.weights in ("timm", "none") or self.is_shipped
        return not usual and not on_hub(self.weights)

    @property
    def is_fetched(self) -> bool:
        """Whether the weights are the hub's, which takes a download."""
        return self.weights == "timm" or (self.weights != "none" and on_hub(self.weights))

    @model_serializer(mode="wrap")
    def _written(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Files and hashes of before there was a choice of heads stay as they were: without it, where none is made."""
        return {name: value for name, value in dump(self).items() if name != "head" or value is not None}


class AdamW(Section):
    """Decoupled weight decay (Loshchilov and Hutter 2019), with bias correction."""

    name: Literal["adamw"] = "adamw"
    lr: Positive = 1e-3
    weight_decay: NotNegative = Field(0.01, description="not applied to biases, norms, tokens and other vectors")
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: Positive = 1e-8


class SGD(Section):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"]
    lr: Positive = 0.01
    weight_decay: NotNegative = Field(0.0, description="not applied to biases, norms, tokens and other vectors")
    momentum: Share = 0.9
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> SGD:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class Schedule(Section):
    """Learning rate as a share of the optimiser's, step by step."""

    name: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Share = Field(0.0, description="share of all steps, linear from 0")


class Train(Section):
    epochs: int = Field(10, ge=1, le=10**6)
    optimizer: Annotated[AdamW | SGD, Field(discriminator="name")] = Field(default_factory=AdamW)
    schedule: Schedule = Field(default_factory=Schedule)
    label_smoothing: Share = 0.0
    clip_norm: Positive | None = Field(None, description="largest norm of the whole gradient; null: no clipping")
    accumulate: BatchSize = Field(1, description="a step's batch is computed in so many parts, to save memory")
    precision: Precision = Field(
        "float32", description="of the step; tf32: float32 whose products CUDA rounds to TF32, elsewhere plain float32"
    )
    compile: Literal["auto"] | bool = Field(
        "auto", description="PyTorch's step as a compiled program; auto: on CUDA. MLX compiles always"
    )
    gradient_checkpointing: bool = Field(False, description="recompute each block in the backward pass")
    cache_features: Gigabytes = Field(
        2.0, description="GB for features before the first trained block, computed once if not augmented; 0: off"
    )
    early_stopping: Steps | None = Field(None, description="epochs without a better validation score")
    log_every: Steps = Field(10, description="steps")
    checkpoint_every: Steps | None = Field(None, description="steps; null: after each epoch only")

    @model_serializer(mode="wrap")
    def _written(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Files of before steps could be compiled stay as they were: without it, where it is not said."""
        return {name: value for name, value in dump(self).items() if name != "compile" or value != "auto"}


class Experiment(Section):
    """One training run."""

    backend: Literal["mlx", "torch"] = "mlx"
    device: DeviceName = "auto"
    seed: int = Field(0, ge=0, lt=2**31)
    model: Model
    method: Method
    quantize: Quantization | None = Field(
        None, description="linear layers of the blocks in so few bits, frozen; null: as they are"
    )
    qat: QAT | None = Field(None, description="float weights trained through the codes they are to become; null: no")
    data: Data
    train: Train = Field(default_factory=Train)
    tokens: Reducer | None = Field(None, description="fewer patch tokens, in training and after it; null: all of them")
    track: list[Literal["tensorboard", "trackio", "wandb", "mlflow"]] = Field(
        default_factory=list, description="where it is shown besides, each by the package of its name"
    )

    @model_serializer(mode="wrap")
    def _written(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Files and hashes of before there was a choice of tokens, or of a device, stay as they were: without it, where
        none is made."""
        usual = {"tokens": None, "device": "auto"}
        return {name: value for name, value in dump(self).items() if name not in usual or value != usual[name]}

    @property
    def rates(self) -> Rates:
        """How each parameter learns."""
        return Rates(self.method, self.qat)

    @model_validator(mode="after")
    def _codes_are_the_base_or_the_aim(self) -> Experiment:
        if self.quantize is not None and self.qat is not None:
            raise ValueError("quantize holds the base in codes, qat trains float weights towards codes: choose one")
        return self

    @model_validator(mode="after")
    def _parts_fit_the_batch(self) -> Experiment:
        if self.data.batch_size % self.train.accumulate:
            raise ValueError(
                f"data.batch_size {self.data.batch_size} is not a multiple of train.accumulate {self.train.accumulate}"
            )
        return self
