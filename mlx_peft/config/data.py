"""Which images, and how they are read: what may be asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from mlx_peft.config.augment import Augment
from mlx_peft.config.section import Section
from mlx_peft.core.bounds import BatchSize, Gigabytes, Name, Seed, Share, UserPath


class Split(Section):
    """Fractions of the images that are held out where the data set has no such split of its own."""

    val: Share = 0.1
    test: Share = 0.0
    seed: Seed = Field(0, description="of the split alone; the experiment's seed does not move images")
    group_by: Literal["none", "duplicates"] | None = Field(
        None,
        description="what is never parted: duplicates, exact or near; null: the set's own groups",
    )

    @model_validator(mode="after")
    def _leaves_training_images(self) -> Split:
        if self.val + self.test >= 1:
            raise ValueError(f"val {self.val} and test {self.test} leave no training images")
        return self


class Cache(Section):
    """Decoded image files, kept on disk from the first epoch on. Runs may share a folder."""

    gigabytes: Gigabytes = Field(0.0, description="the most that is kept; 0: off")
    folder: UserPath | None = Field(None, description="null: the user's, for caches")
    side: int | None = Field(
        None, ge=1, le=65535, description="the shorter side of larger images, as kept; null: whole"
    )

    @model_validator(mode="after")
    def _side_of_what_is_kept(self) -> Cache:
        if self.side is not None and not self.gigabytes:
            raise ValueError("side is the size of the images that are kept: set gigabytes too")
        return self


class Columns(Section):
    """The columns of a table of images (a CSV file, Parquet files); null: by their usual names."""

    image: Name | None = Field(None, description="the path, or the image itself")
    label: Name | None = None
    split: Name | None = Field(None, description="train, val or test; none: no column")
    group: Name | None = Field(None, description="what is never parted, such as a patient; none: no column")


class Data(Section):
    name: Name = Field(description="a data set that `ls datasets` lists, or hf:OWNER/NAME")
    variant: Name | Annotated[int, Field(ge=0, lt=2**31)] | None = Field(
        None, description="its protocol, partition or size, of those that `ls datasets` lists; null: the first"
    )
    columns: Columns = Field(default_factory=Columns)
    root: UserPath = Field(Path("data"), description="the folder that holds it")
    batch_size: BatchSize = Field(64, description="images per optimiser step")
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
    threads: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = Field(
        "auto", description="that decode images; auto: as many as cores are free; the pixels do not depend on it"
    )
    workers: Literal["auto", "threads", "processes"] = Field(
        "auto", description="what data.threads counts; auto: threads up to what Python's lock lets work at once"
    )
    cache: Cache = Field(default_factory=Cache)

    @property
    def soft_targets(self) -> bool:
        """Whether a target is a number for each class: where images are mixed or classes weigh differently."""
        return self.augment.mixes or self.class_weights != "none"

    @field_validator("workers", mode="before")
    @classmethod
    def _is_no_number(cls, value: Any) -> Any:
        if isinstance(value, int):
            raise ValueError("what decodes images: auto, threads or processes; how many there are is data.threads")
        return value

    @model_serializer(mode="wrap")
    def _written(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Files of before there was a choice of workers stay as they were: without it, where none is made."""
        return {name: value for name, value in dump(self).items() if name != "workers" or value != "auto"}

    @model_validator(mode="after")
    def _fits_together(self) -> Data:
        if self.sampling != "instance" and self.class_weights != "none":
            raise ValueError("sampling and class_weights would make up for rare classes twice: choose one")
        if self.sampling != "instance" and self.augment.repeats > 1:
            raise ValueError(f"sampling: {self.sampling} repeats images itself: leave augment.repeats out")
        if self.augment.mixes and self.batch_size < 2:
            raise ValueError("augment: mixup and cutmix need a batch_size of 2 or more")
        return self
