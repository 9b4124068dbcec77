"""What every method's configuration has, and what is known of a method without a model."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from mlx_peft.config.quantization import QAT, Quantization
from mlx_peft.config.section import Section
from mlx_peft.config.tokens import ReducerConfig
from mlx_peft.core.bounds import UserPath
from mlx_peft.core.errors import UserError
from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.parameters import decays, last
from mlx_peft.vit.shapes import Shapes
from mlx_peft.vit.sites import PARTS, Blocks, Site, Targets, chosen, sites

Given = Literal["weights", "images"]
"""What a start is made from that a model does not hold."""

GIVEN: dict[Given, str] = {"weights": "the weights before they were quantised", "images": "training images"}
"""In words."""


class MethodConfig(Section):
    """A method trains its own parameters, and always the head.

    Class attributes, which ``mlx-peft ls methods`` prints:
        unmerged: why what it trains folds into no plain model with the same logits; None where it does.
        in_peft: whether Hugging Face PEFT has the method and reads its adapters.
        unmixed: why the rows of one batch may not each have an adapter of their own; None where they may.
        uncombined: why several adapters of it cannot become one; None where they can.
    """

    name: str
    start: UserPath | None = Field(
        None, alias="from", repr=False, description="a finished run, or an adapter, whose tensors training begins with"
    )
    unmerged: ClassVar[str | None] = None
    in_peft: ClassVar[bool] = False
    unmixed: ClassVar[str | None] = None
    uncombined: ClassVar[str | None] = None
    unreduced: ClassVar[str | None] = None
    """Why a model that has it may not have fewer tokens; None where it may."""
    beside: ClassVar[bool] = False
    """Whether what it trains stands beside the model's blocks, so that no gradient goes through them."""
    over_codes: ClassVar[bool] = False
    """Whether it needs a quantised base, which it merges into as it is."""
    rounds: ClassVar[bool] = False
    """Whether the weights that it trains can be rounded as they are trained (``qat``)."""
    kept: ClassVar[tuple[str, ...]] = ()
    """Last names of tensors that it keeps frozen beside what it trains: an adapter is not whole without them."""
    implied: ClassVar[tuple[str, ...]] = ()
    """Last names of those of them that the base says too: a file of another library's does not have them."""
    later: ClassVar[tuple[str, ...]] = ()
    """Options that earlier versions did not have: files and hashes have them where they are not at their defaults."""
    undecayed: ClassVar[tuple[str, ...]] = ()
    """Last names of its tensors that weight decay leaves alone, although they have several axes."""

    @model_serializer(mode="wrap")
    def _written(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """By the name that a user writes; where there is none, files and hashes are those of before there was any."""
        values: dict[str, Any] = dump(self)
        said = {name for name, _ in self.__repr_args__()}  # what is not at its default
        values = {name: value for name, value in values.items() if name in said or name not in self.later}
        start = values.pop("start", None)
        return values if start is None else values | {"from": start}

    @property
    def merges(self) -> bool:
        """Whether what it trains folds into a plain model with the same logits."""
        return self.unmerged is None

    @classmethod
    def must_merge(cls) -> None:
        """Raises UserError, which says why, where what it trains folds into no plain model."""
        if cls.unmerged is not None:
            raise UserError(f"method {cls.model_fields['name'].default} cannot be merged: {cls.unmerged}")

    @property
    def own_codes(self) -> bool:
        """Whether the codes of the layers below its adapters are chosen with these, and kept in them."""
        return False

    @property
    def given(self) -> Given | None:
        """What its tensors start from that a model does not hold; None for most."""
        return None

    def must_mix(self) -> None:
        """Raises UserError, which says why, where the rows of one batch may not each have an adapter of their own."""
        if self.unmixed is not None:
            raise UserError(f"method {self.name}: a batch cannot mix its adapters: {self.unmixed}")

    def must_combine(self) -> None:
        """Raises UserError, which says why, where its adapters cannot be combined with others."""
        if self.uncombined is not None:
            raise UserError(f"adapters of the method {self.name} cannot be combined: {self.uncombined}")

    @property
    def dropped(self) -> float:
        """With which probability an input of its update, which is a weight's, is dropped in training."""
        return 0.0

    def check(self, architecture: Architecture) -> None:
        """Raises UserError where the method cannot be put on such a model."""

    def check_new(self, architecture: Architecture) -> None:
        """Raises UserError where the method fits such a model, but should not be trained on it from the start."""

    def check_quantization(self, architecture: Architecture, quantization: Quantization | None) -> None:
        """Raises UserError where the method cannot be put on a base that is quantised like this; None: not at all."""

    def check_tokens(self, tokens: ReducerConfig | None) -> None:
        """Raises UserError where the method cannot be on a model that has fewer tokens like this; None: all of them."""
        if tokens is not None and self.unreduced is not None:
            raise UserError(f"tokens: method {self.name} does not go with {tokens.name}: {self.unreduced}")

    def check_rounding(self, architecture: Architecture, qat: QAT, quantization: Quantization | None) -> None:
        """Raises UserError where the method cannot be trained through codes like these.

        ``quantization`` is the base's.
        """
        if not self.rounds:
            raise UserError(
                f"qat: method {self.name} trains no weight that could be rounded as it is trained; full, lora, adalora "
                "and vera do. To train beside codes, set quantize in its place"
            )
        if quantization is not None:
            raise UserError(
                "qat: the base is in codes already, which are not trained; leave qat out, or take a float base"
            )
        if self.dropped:
            raise UserError(
                "method.dropout: under qat the weight is rounded with the update in it, and the update has no input of "
                "its own that could be dropped; set it to 0"
            )
        qat.sites(architecture)

    def selected(self, architecture: Architecture) -> tuple[str, ...]:
        """The model's own parameters that are trained, heads left out. Raises UserError where it has no such block."""
        return ()

    def added(self, architecture: Architecture, quantization: Quantization | None = None) -> Shapes:
        """What the method puts into the model, trained or kept, by name and shape.

        ``quantization`` is the base's. Raises UserError where the method cannot be put on such a model.
        """
        return {}

    def keeps(self, name: str) -> bool:
        """Whether the parameter is one that the method keeps frozen, as a part of the adapter."""
        return last(name) in self.kept

    def decays(self, name: str, ndim: int) -> bool:
        """Whether weight decay applies to a parameter with so many axes."""
        return decays(name, ndim) and last(name) not in self.undecayed

    def lr_ratio(self, name: str) -> float:
        """The learning rate of a parameter, over that of the optimiser."""
        return 1.0


class Blockwise(MethodConfig):
    """A method that acts in the blocks, or in some of them."""

    blocks: Blocks | None = Field(
        None, description="numbers from 0, negative ones from the end, or 'last 4', 'first 6', '8-11'; null: all"
    )

    def chosen_blocks(self, architecture: Architecture) -> tuple[int, ...]:
        """The blocks' numbers, in order. Raises UserError where the model has no such block."""
        return chosen(self.blocks, architecture.depth)

    def check(self, architecture: Architecture) -> None:
        self.chosen_blocks(architecture)


class Targeted(Blockwise):
    """A method that adapts linear layers of the blocks."""

    targets: Targets = Field(
        ("qkv", "proj"),
        description="linear layers inside the blocks; q, k and v are parts of qkv; or attention, mlp, all-linear",
    )

    def sites(self, architecture: Architecture) -> list[Site]:
        """The layers that are adapted, in the model's order. Raises UserError where a target matches none."""
        return sites(architecture, self.targets, self.chosen_blocks(architecture))

    def check(self, architecture: Architecture) -> None:
        self.sites(architecture)


class Undivided(Targeted):
    """A method of whole layers, which q, k and v of a fused qkv are not."""

    undivided: ClassVar[str]
    """Why it cannot be of a part of qkv."""

    @field_validator("targets")
    @classmethod
    def _whole_layers(cls, targets: Targets) -> Targets:
        if parts := [name for name in targets if name in PARTS]:
            raise ValueError(f"{parts[0]!r} is a part of qkv, and {cls.undivided}: name qkv")
        return targets
