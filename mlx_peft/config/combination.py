"""How adapters of one base become one: what a user may ask for, by the names that Hugging Face PEFT has for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from mlx_peft.config.section import Section
from mlx_peft.core.bounds import LARGEST, Rank, Seed
from mlx_peft.core.errors import UserError, shown, suggest
from mlx_peft.core.problems import validated
from mlx_peft.core.text import printable

How = Literal[
    "cat",
    "linear",
    "svd",
    "ties",
    "ties_svd",
    "dare_linear",
    "dare_linear_svd",
    "dare_ties",
    "dare_ties_svd",
    "magnitude_prune",
    "magnitude_prune_svd",
]
WAYS: tuple[How, ...] = get_args(How)
MajoritySign = Literal["total", "frequency"]


@dataclass(frozen=True)
class Rule:
    """What becomes of one tensor of several adapters, element by element.

    Attributes:
        keeps: which of an adapter's elements: the ``largest``, ``random`` ones, or all, for None.
        elects: one sign an element is elected, and those that have another are left out of a mean.
    """

    keeps: Literal["largest", "random"] | None = None
    elects: bool = False


RULES = {
    "linear": Rule(),
    "magnitude_prune": Rule("largest"),
    "ties": Rule("largest", elects=True),
    "dare_linear": Rule("random"),
    "dare_ties": Rule("random", elects=True),
}
"""By the names of the ways that are nothing else."""

Weight = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]


class Combination(Section):
    """A way to combine, with all that it needs."""

    how: How
    rank: Rank | None = Field(None, description="of the result; null: the largest that is combined")
    density: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="share of the elements kept")
    seed: Seed = Field(0, description="of the random ones that are kept")
    majority_sign_method: MajoritySign = Field("total", description="a sign is elected by sum, or by number")

    @model_serializer(mode="wrap")
    def _written(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What the way has a use for, and no more."""
        values: dict[str, Any] = dump(self)
        return {name: value for name, value in values.items() if self.uses.get(name, True)}

    @property
    def uses(self) -> dict[str, bool]:
        """Whether the way has a use for each of the settings."""
        return {
            "rank": self.factorises,
            "density": self.rule.keeps is not None,
            "seed": self.rule.keeps == "random",
            "majority_sign_method": self.rule.elects,
        }

    @property
    def factorises(self) -> bool:
        """Whether whole updates are combined, and their sum is brought to a rank."""
        return self.how.endswith("svd")

    @property
    def rule(self) -> Rule:
        """Of the elements of whole updates, or else of factors."""
        return RULES.get(self.how.removesuffix("_svd"), RULES["linear"])


def combination(
    how: str, rank: int | None, density: float | None, seed: int | None, majority_sign_method: str | None
) -> Combination:
    """What a user asks for; None is what was not said.

    Raises UserError for a way that there is not, for what a way needs and was not said, and for what it has no use for.
    """
    if how not in WAYS:
        raise UserError(f"unknown way {shown(how)}{suggest(how, WAYS)}; known: {', '.join(WAYS)}", arguments=("how",))
    given: dict[str, Any] = {
        "rank": rank,
        "density": density,
        "seed": seed,
        "majority_sign_method": majority_sign_method,
    }
    found = validated(Combination, "combine", {"how": how} | {k: v for k, v in given.items() if v is not None})
    for name, used in found.uses.items():
        if given[name] is not None and not used:
            raise UserError(f"{how} has no use for {name}: leave it out", arguments=(name,))
    if found.uses["density"] and density is None:
        raise UserError(
            f"{how} keeps a share of each adapter's elements: say which, as density, such as 0.2",
            arguments=("density",),
        )
    return found


class Ingredient(Section):
    """One of the adapters that another was made of.

    Attributes:
        name: of its folder, without the place.
        sha256: of what it had learnt, its head left out.
    """

    name: str
    method: str
    weight: Weight
    sha256: str


class Origin(Section):
    """What an adapter was made of, and how.

    Attributes:
        combination: None where there was nothing to combine but heads.
        head: ``mean`` or ``join``, or the name of the adapter whose head it is.
    """

    adapters: tuple[Ingredient, ...]
    combination: Combination | None
    head: str

    def __str__(self) -> str:
        """``cat of 0.7 x mine and 0.3 x yours, the head of mine``."""
        parts = " and ".join(f"{one.weight:g} x {printable(one.name)}" for one in self.adapters)
        way = "" if self.combination is None else f"{self.combination.how} of "
        head = {"mean": "the mean of their heads", "join": "their heads beside one another"}
        return f"{way}{parts}, {head.get(self.head, f'the head of {printable(self.head)}')}"
