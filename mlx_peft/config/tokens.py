"""Fewer tokens: which patch tokens a model merges, fuses or leads around blocks, and where."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, ClassVar, Literal, cast

import numpy as np
from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from mlx_peft.config.section import Section
from mlx_peft.core.border import Tensors
from mlx_peft.core.bounds import Positive
from mlx_peft.core.errors import UserError, shown, suggest
from mlx_peft.core.problems import in_a_line
from mlx_peft.core.sections import sections, variants
from mlx_peft.core.text import counted
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.initial import normal
from mlx_peft.vit.places import PATCH
from mlx_peft.vit.shapes import Shapes

Keep = Annotated[float, Field(gt=0, le=1)]
Block = Annotated[int, Field(ge=0, lt=512)]

NONE = "none"
"""What a person writes for no reducer at all."""

ROUTERS = "routers"
"""Where a model has what its reducers train."""


def is_router(name: str) -> bool:
    """Whether the parameter is one that a reducer trains, under whatever method."""
    return name.partition(".")[0] == ROUTERS


class ReducerConfig(Section):
    """A reducer acts on patch tokens between attention and MLP; all other tokens go through every block.

    Class attributes:
        needs_class: why it needs a class token; None where it does not.
        trains: whether it has parameters, which are trained with the method's and lie in the adapter's file.
    """

    name: str
    needs_class: ClassVar[str | None] = None
    trains: ClassVar[bool] = False

    def check(self, architecture: Architecture) -> None:
        """Raises UserError where the model cannot be reduced so."""
        if self.needs_class is not None and not architecture.class_token:
            raise UserError(
                f"tokens: {self.name} {self.needs_class}, and the model has no class token; tome needs none"
            )

    def left(self, architecture: Architecture) -> tuple[int, ...]:
        """How many patch tokens there are behind the attention of each block; 0 where none come out of it."""
        raise NotImplementedError

    def whole(self, block: int) -> bool:
        """Whether what enters a block are the tokens of a plain model; the depth: what comes out of the last."""
        raise NotImplementedError

    def added(self, architecture: Architecture) -> Shapes:
        """What it trains, by name and shape."""
        return {}

    def must_pool(self, architecture: Architecture, tokens: int) -> None:
        """Raises UserError where so many tokens, with nothing known of them, are too little for the model's pooling."""

    def must_merge(self) -> None:
        """Raises UserError where what it trains folds into no plain weights."""
        if self.trains:
            raise UserError(
                f"tokens: {self.name} cannot be merged: its routers decide anew for each image, so no weight can take "
                "them up; keep the adapter beside the model, or open it with the tokens none, which is another function"
            )

    def __str__(self) -> str:
        """As a person writes it: ``tome r=13``."""
        values = self.model_dump(mode="json")
        name = values.pop("name")
        return " ".join([name, *(f"{key}={str(value).replace(' ', '')}" for key, value in values.items())])


class ToMe(ReducerConfig):
    """Token merging (Bolya et al. 2023, arXiv 2210.09461): in every block the r pairs most alike become one each."""

    name: Literal["tome"] = "tome"
    r: int = Field(13, ge=0, le=2**24, description="patch tokens fewer in each block; at most half of them, 0: none")

    def check(self, architecture: Architecture) -> None:
        super().check(architecture)
        patches = architecture.places.count(PATCH)
        if self.r > patches // 2:
            raise UserError(
                f"tokens.r: {self.r} is more than {patches // 2}, half of the model's {counted(patches, 'patch')}: no "
                "block can merge more"
            )

    def left(self, architecture: Architecture) -> tuple[int, ...]:
        counts, now = [], architecture.places.count(PATCH)
        for _ in range(architecture.depth):
            now -= min(self.r, now // 2)
            counts.append(now)
        return _read(counts, architecture)

    def whole(self, block: int) -> bool:
        return block == 0 or not self.r

    def must_pool(self, architecture: Architecture, tokens: int) -> None:
        if architecture.global_pool != "token" and tokens < len(architecture.places):
            raise UserError(
                "forward_head cannot pool tokens that tome has merged: each counts as often as it stands for a patch, "
                "and that is not in them; call the model itself, model(x)"
            )


class EViT(ReducerConfig):
    """Token reorganisation (Liang et al. 2022, arXiv 2202.07800): what the class token attends to least is fused."""

    name: Literal["evit"] = "evit"
    keep: Keep = Field(0.7, description="share of the patch tokens that stay; the others become one")
    blocks: tuple[Block, ...] = Field((3, 6, 9), min_length=1, description="numbers from 0: where that is done")
    needs_class: ClassVar[str | None] = "ranks patches by the attention of the class token"

    @model_validator(mode="after")
    def _in_order(self) -> EViT:
        if list(self.blocks) != sorted(set(self.blocks)):
            raise ValueError(f"blocks should be in order, each once, not {list(self.blocks)}")
        return self

    def check(self, architecture: Architecture) -> None:
        super().check(architecture)
        _must_be_block(self.blocks[-1], architecture, "blocks")

    def kept(self, patches: int) -> int:
        """How many of so many patch tokens stay as they are; all, where no more than one would be fused."""
        stay = _share(self.keep, patches)
        return stay if stay + 1 < patches else patches

    def left(self, architecture: Architecture) -> tuple[int, ...]:
        counts, now = [], architecture.places.count(PATCH)
        for block in range(architecture.depth):
            if block in self.blocks and (stay := self.kept(now)) < now:
                now = stay + 1
            counts.append(now)
        return _read(counts, architecture)

    def whole(self, block: int) -> bool:
        return block <= self.blocks[0] or self.keep == 1


class SkipViT(ReducerConfig):
    """A skip connection of tokens (Ataiefard et al. 2024, arXiv 2401.15293): the others skip the middle blocks."""

    name: Literal["skipvit"] = "skipvit"
    keep: Keep = Field(0.45, description="share of the patch tokens that go through the middle blocks")
    start: Block = Field(2, alias="from", description="number from 0: behind this block's attention the others leave")
    to: Block = Field(10, description="behind this block's attention they are back in their places")
    needs_class: ClassVar[str | None] = "ranks patches by the attention of the class token"

    @model_serializer(mode="wrap")
    def _written(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """By the name that a user writes."""
        return {"from" if key == "start" else key: value for key, value in dump(self).items()}

    @model_validator(mode="after")
    def _forwards(self) -> SkipViT:
        if self.start >= self.to:
            raise ValueError(f"from {self.start} should be before to {self.to}")
        return self

    def check(self, architecture: Architecture) -> None:
        super().check(architecture)
        _must_be_block(self.to, architecture, "to")

    def kept(self, patches: int) -> int:
        """How many of so many patch tokens go through the middle blocks."""
        return _share(self.keep, patches)

    def left(self, architecture: Architecture) -> tuple[int, ...]:
        patches = architecture.places.count(PATCH)
        stay = self.kept(patches)
        inside = range(self.start, self.to)
        return _read([stay if block in inside else patches for block in range(architecture.depth)], architecture)

    def whole(self, block: int) -> bool:
        return block <= self.start or block > self.to or self.keep == 1


class DyT(ReducerConfig):
    """Dynamic tuning (Zhao et al. 2024, arXiv 2403.11808): trained routers say which patch tokens pass the MLPs by."""

    name: Literal["dyt"] = "dyt"
    rate: Keep = Field(0.5, description="share of the patch tokens that are to go through the MLPs, over all blocks")
    weight: Positive = Field(2.0, description="of (mean share - rate)^2 in the loss")
    temperature: Positive = Field(5.0, description="of the sigmoid that the gradient takes the decision for")
    trains: ClassVar[bool] = True

    def check(self, architecture: Architecture) -> None:
        super().check(architecture)
        if not self._routers(architecture):
            raise UserError(
                "tokens: dyt needs a block that patch tokens come out of, and the model's only one has none"
            )

    def left(self, architecture: Architecture) -> tuple[int, ...]:
        return _read([architecture.places.count(PATCH)] * architecture.depth, architecture)

    def whole(self, block: int) -> bool:
        return True

    def _routers(self, architecture: Architecture) -> int:
        """How many there are: one a block, but none where no patch token comes out."""
        return sum(count > 0 for count in self.left(architecture))

    def added(self, architecture: Architecture) -> Shapes:
        count = self._routers(architecture)
        return {f"{ROUTERS}.weight": (count, architecture.embed_dim), f"{ROUTERS}.bias": (count,)}

    def initial(self, architecture: Architecture, seed: int) -> Tensors:
        """What it trains, as training begins: float32."""
        (name, shape), (bias, count) = self.added(architecture).items()
        return {name: normal(shape, 0.02, seed, name), bias: np.zeros(count, np.float32)}


Reducer = Annotated[ToMe | EViT | SkipViT | DyT, Field(discriminator="name")]


def described(values: Any, where: str, *others: str) -> ReducerConfig:
    """A reducer by the values of its section, as strict as a recipe is.

    Raises UserError, ``where`` at its head, where they are no such; ``others`` may stand there too.
    """
    known = cast(dict[str, type[ReducerConfig]], variants(sections(Reducer)))
    name = values.get("name") if isinstance(values, dict) else None
    if not isinstance(name, str) or name not in known:
        wrong = f"unknown reducer {shown(name)}{suggest(str(name), there := [*known, *others])}"
        raise UserError(f"{where}: {wrong}; known: {', '.join(there)}, such as 'tome r=13'")
    try:
        return known[name].model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise UserError(f"{where}: {in_a_line(error, known[name])}") from None


def _share(keep: float, patches: int) -> int:
    """ceil(keep patches), but for what a product of floats is off by: 0.55 of 100 are 55. Never none of some."""
    return max(1, math.ceil(keep * patches - 1e-9))


def _read(counts: list[int], architecture: Architecture) -> tuple[int, ...]:
    """Of the last block only the tokens that are read are computed."""
    return (*counts[:-1], 0 if architecture.kinds_read is not None else counts[-1])


def _must_be_block(block: int, architecture: Architecture, key: str) -> None:
    if block >= architecture.depth:
        raise UserError(f"tokens.{key}: the model has no block {block}: it has {architecture.depth}, counted from 0")
