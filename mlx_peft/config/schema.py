"""The experiment: everything a user may write in a configuration file, checked before any work is done."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from mlx_peft.config.methods import Method
from mlx_peft.config.parameters import SCALE
from mlx_peft.config.quantization import QAT, Quantization

Precision = Literal["float32", "bfloat16", "float16"]
Share = Annotated[float, Field(ge=0, lt=1)]


def expanded(path: Path) -> Path:
    """``~`` as the home folder, which a shell leaves alone in ``data.root=~/images``."""
    return Path(os.path.expanduser(path))


class Section(BaseModel):
    """A part of the experiment: frozen, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Model(Section):
    name: str = Field(description="a timm name, with or without a tag: vit_small_patch16_224.augreg_in21k_ft_in1k")
    weights: str = Field(
        "timm", description="timm (the hub), none (random), package:NAME (shipped), or a file or folder"
    )
    image_size: int | None = Field(None, ge=1, description="pixels; null: the architecture's own")
    args: dict[str, bool | int | float | str | None] = Field(
        default_factory=dict, description="fields of the architecture to change, such as depth"
    )
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth of the last block; linear from 0")
    head_dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the head")

    @property
    def is_local(self) -> bool:
        """Whether the weights are a file or a folder of this machine; else they mean the same on any."""
        return self.weights not in ("timm", "none") and not self.weights.startswith("package:")


class Split(Section):
    """Fractions of the images that are held out where the data set has no such split of its own."""

    val: float = Field(0.1, ge=0, lt=1)
    test: float = Field(0.0, ge=0, lt=1)
    seed: int = Field(0, ge=0, description="of the split alone; the experiment's seed does not move images")
    group_by: Literal["none", "duplicates"] | None = Field(
        None,
        description="what is never parted: duplicates, exact or near; null: the set's own groups",
    )

    @model_validator(mode="after")
    def _leaves_training_images(self) -> Split:
        if self.val + self.test >= 1:
            raise ValueError(f"val {self.val} and test {self.test} leave no training images")
        return self


class RandAugment(Section):
    """RandAugment (Cubuk et al. 2020), torchvision's operations and magnitudes."""

    ops: int = Field(2, ge=1, description="operations on an image, one after the other")
    magnitude: int = Field(9, ge=0, le=30, description="of each, from none to 30")


class ColorJitter(Section):
    """Random changes of colour, torchvision's: factors in 1 - x to 1 + x; the hue turned by -x to x of the circle."""

    brightness: float = Field(0.4, ge=0)
    contrast: float = Field(0.4, ge=0)
    saturation: float = Field(0.4, ge=0)
    hue: float = Field(0.0, ge=0, le=0.5)

    @model_validator(mode="after")
    def _does_something(self) -> ColorJitter:
        if not (self.brightness or self.contrast or self.saturation or self.hue):
            raise ValueError("changes nothing: leave it out")
        return self


class Erasing(Section):
    """Random erasing (Zhong et al. 2020) of a box, timm's."""

    probability: float = Field(0.25, gt=0, le=1)
    area: tuple[float, float] = Field((0.02, 1 / 3), description="of the box, share of the image's")
    ratio: tuple[float, float] = Field((0.3, 10 / 3), description="of the box, height / width")
    fill: Literal["mean", "noise"] = Field("mean", description="the weights' mean colour, or noise around it")

    @model_validator(mode="after")
    def _intervals(self) -> Erasing:
        an_interval(self.area)
        an_interval(self.ratio)
        if self.area[1] > 1:
            raise ValueError(f"area: should be at most 1, not {self.area[1]}")
        return self


def an_interval(interval: tuple[float, float]) -> tuple[float, float]:
    if not 0 < interval[0] <= interval[1]:
        raise ValueError(f"should be a smaller and a larger number above 0, not {list(interval)}")
    return interval


class Augment(Section):
    crop: Literal["none", "padded", "random_resized"] = "none"
    padding: int = Field(4, ge=0, description="padded: pixels (of the stored image) on each side, reflected")
    scale: tuple[float, float] = Field((0.08, 1.0), description="random_resized: share of the area")
    ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="random_resized: width / height")
    flip: bool = Field(False, description="horizontal, with probability 1/2")
    randaugment: RandAugment | None = None
    color_jitter: ColorJitter | None = None
    erasing: Erasing | None = None
    mixup: float = Field(0.0, ge=0, description="of its Beta distribution: timm's is 0.8; 0: off")
    cutmix: float = Field(0.0, ge=0, description="of its Beta distribution: timm's is 1; 0: off")
    mix_probability: float = Field(1.0, gt=0, le=1, description="that a batch is mixed")
    cutmix_share: float = Field(0.5, ge=0, le=1, description="of the batches that are mixed, where both are on")
    repeats: int = Field(1, ge=1, description="copies of an image in an epoch, of so many fewer images")

    @field_validator("scale", "ratio")
    @classmethod
    def _an_interval(cls, interval: tuple[float, float]) -> tuple[float, float]:
        return an_interval(interval)

    @model_validator(mode="after")
    def _fit_together(self) -> Augment:
        given = {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}
        if self.randaugment and self.color_jitter:
            raise ValueError("randaugment changes colours itself: choose it or color_jitter")
        if "mix_probability" in given and not self.mixes:
            raise ValueError("mix_probability needs mixup or cutmix")
        if "cutmix_share" in given and not (self.mixup and self.cutmix):
            raise ValueError("cutmix_share needs both mixup and cutmix")
        if self.repeats > 1 and not self.changes_image:
            raise ValueError("repeats without another augmentation would show the same pixels again")
        return self

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed with each other."""
        return bool(self.mixup or self.cutmix)

    @property
    def changes_image(self) -> bool:
        """Whether an image differs from epoch to epoch before it meets another."""
        return self.flip or self.crop != "none" or bool(self.randaugment or self.color_jitter or self.erasing)

    @property
    def changes_pixels(self) -> bool:
        """Whether what the model sees differs from epoch to epoch."""
        return self.changes_image or self.mixes


class Cache(Section):
    """Decoded image files, kept on disk from the first epoch on. Runs may share a folder."""

    gigabytes: float = Field(0.0, ge=0, description="the most that is kept; 0: off")
    folder: Annotated[Path, AfterValidator(expanded)] | None = Field(None, description="null: the user's, for caches")
    side: int | None = Field(None, ge=1, description="larger images are kept with this shorter side; null: as they are")

    @model_validator(mode="after")
    def _side_of_what_is_kept(self) -> Cache:
        if self.side is not None and not self.gigabytes:
            raise ValueError("side is that of kept images: set gigabytes too")
        return self


class Columns(Section):
    """The columns of a table of images (a CSV file, Parquet files); null: by their usual names."""

    image: str | None = Field(None, description="the path, or the image itself")
    label: str | None = None
    split: str | None = Field(None, description="train, val or test; none: no column")
    group: str | None = Field(None, description="what is never parted, such as a patient; none: no column")


class Data(Section):
    name: str = Field(description="a data set: `mlx-peft ls datasets`, or hf:OWNER/NAME")
    variant: str | int | None = Field(
        None, description="its protocol, partition or size: `mlx-peft ls datasets NAME --json`; null: the first"
    )
    columns: Columns = Field(default_factory=Columns)
    root: Annotated[Path, AfterValidator(expanded)] = Field(Path("data"), description="the folder that holds it")
    batch_size: int = Field(64, ge=1, description="images per optimiser step")
    split: Split = Field(default_factory=Split)
    augment: Augment = Field(default_factory=Augment)
    sampling: Literal["instance", "square_root", "class"] = Field(
        "instance", description="a class's share of an epoch: its images', their square root's, or alike for all"
    )
    class_weights: Literal["none", "square_root", "balanced"] = Field(
        "none", description="what an image counts in the loss, by how rare its class is"
    )
    download: bool = Field(False, description="fetch the data set where it is missing and may be fetched")
    unreadable: Literal["refuse", "skip"] = Field("refuse", description="what to do with a broken image")
    threads: int = Field(2, ge=1, description="that decode images; the pixels do not depend on it")
    cache: Cache = Field(default_factory=Cache)

    @property
    def soft_targets(self) -> bool:
        """Whether a target is a number for each class: where images are mixed or classes weigh differently."""
        return self.augment.mixes or self.class_weights != "none"

    @model_validator(mode="after")
    def _fits_together(self) -> Data:
        if self.sampling != "instance" and self.class_weights != "none":
            raise ValueError("sampling and class_weights would make up for rare classes twice: choose one")
        if self.sampling != "instance" and self.augment.repeats > 1:
            raise ValueError(f"sampling: {self.sampling} repeats images itself: leave augment.repeats out")
        if self.augment.mixes and self.batch_size < 2:
            raise ValueError("augment: mixup and cutmix need a batch_size of 2 or more")
        return self


class AdamW(Section):
    """Decoupled weight decay (Loshchilov and Hutter 2019), with bias correction."""

    name: Literal["adamw"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0, description="not applied to biases, norms, tokens and other vectors")
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)


class SGD(Section):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"]
    lr: float = Field(0.01, gt=0)
    weight_decay: float = Field(0.0, ge=0, description="not applied to biases, norms, tokens and other vectors")
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> SGD:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class Schedule(Section):
    """Learning rate as a share of the optimiser's, step by step."""

    name: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(0.0, ge=0, lt=1, description="share of all steps, linear from 0")


class Train(Section):
    epochs: int = Field(10, ge=1)
    optimizer: Annotated[AdamW | SGD, Field(discriminator="name")] = Field(default_factory=AdamW)
    schedule: Schedule = Field(default_factory=Schedule)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    clip_norm: float | None = Field(None, gt=0, description="largest norm of the whole gradient; null: no clipping")
    accumulate: int = Field(1, ge=1, description="a step's batch is computed in so many parts, to save memory")
    precision: Precision = "float32"
    gradient_checkpointing: bool = Field(False, description="recompute each block in the backward pass")
    cache_features: float = Field(
        2.0, ge=0, description="GB for features before the first trained block, computed once if not augmented; 0: off"
    )
    early_stopping: int | None = Field(None, ge=1, description="epochs without a better validation score")
    log_every: int = Field(10, ge=1, description="steps")
    checkpoint_every: int | None = Field(None, ge=1, description="steps; null: after each epoch only")


class Experiment(Section):
    """One training run."""

    backend: Literal["mlx", "torch"] = "mlx"
    seed: int = Field(0, ge=0, lt=2**31)
    model: Model
    method: Method
    quantize: Quantization | None = Field(
        None, description="linear layers of the blocks in so few bits, frozen; null: as they are"
    )
    qat: QAT | None = Field(None, description="float weights trained through the codes they are to become; null: no")
    data: Data
    train: Train = Field(default_factory=Train)
    track: list[Literal["tensorboard"]] = Field(default_factory=list)

    def lr_ratio(self, name: str) -> float:
        """The learning rate of a parameter, over that of the optimiser."""
        if self.qat is not None and name.endswith(f".{SCALE}"):
            return self.qat.lr_ratio
        return self.method.lr_ratio(name)

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
