"""``combine``: several adapters into one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_peft.cli import completing
from mlx_peft.cli.common import (
    AsJson,
    Backend,
    ImageSize,
    ModelName,
    WeightsToo,
    backend_of,
    base_of,
    echo,
    echo_files,
    echo_json,
    files_in,
)
from mlx_peft.core.errors import UserError, shown

if TYPE_CHECKING:
    from mlx_peft.artifacts.combine import Combined


Adapters = Annotated[
    list[str],
    typer.Argument(
        metavar="ADAPTER[=WEIGHT]",
        help="Folders of adapters or runs of one base, with their weights; 1, if left out.",
        show_default=False,
    ),
]
Out = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="The folder to write.", show_default=False)]
How = Annotated[
    str | None,
    typer.Option(
        "--how",
        metavar="WAY",
        help="cat, linear, svd, ties, dare_linear, dare_ties, magnitude_prune, or one of these four with _svd.",
        show_default="the exact one",
        autocompletion=completing.ways,
    ),
]
Head = Annotated[
    str | None,
    typer.Option(
        "--head",
        metavar="NAME|mean|join",
        help="Whose head: that of one adapter, the mean, or the classes of all.",
        show_default=False,
    ),
]
Rank = Annotated[
    int | None, typer.Option("--rank", metavar="R", help="Of svd: the result's.", show_default="the largest")
]
Density = Annotated[
    float | None,
    typer.Option(
        "--density", metavar="SHARE", help="Of ties, dare, magnitude_prune: what is kept.", show_default=False
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Of dare: of which is kept.", show_default="0")]
MajoritySign = Annotated[
    str | None,
    typer.Option(
        "--majority-sign-method",
        metavar="total|frequency",
        help="Of ties: how a sign is elected.",
        show_default="total",
    ),
]


def combine(
    ctx: typer.Context,
    adapters: Adapters,
    out: Out,
    how: How = None,
    head: Head = None,
    rank: Rank = None,
    density: Density = None,
    seed: Seed = None,
    majority_sign_method: MajoritySign = None,
    model: ModelName = None,
    weights: WeightsToo = None,
    image_size: ImageSize = None,
    backend: Backend = None,
    as_json: AsJson = False,
) -> None:
    """Combine adapters of one base into a new one.

    Without --how the result is exactly the weighted sum of what the adapters add to their base. Weights are taken as
    they are: 0.5 each is the mean of two; ADAPTER=0.5 alone is half of one.
    """
    from mlx_peft.artifacts.ahead import must_be_new
    from mlx_peft.artifacts.combine import Wish
    from mlx_peft.artifacts.combine import combine as made_one

    wish = Wish(how, rank, density, seed, majority_sign_method, head)
    given = dict(map(weighed, adapters))
    if len(given) < len(adapters):
        raise UserError("an adapter is named twice: give it one weight")
    must_be_new(out)
    made = made_one(
        given, out, wish, backend_of(ctx, backend), model=base_of(model, weights, image_size),
        weights=weights,
    )  # fmt: skip
    for note in made.notes:
        echo(f"note: {note}", err=True)
    if as_json:
        echo_json(document(out, made))
        return
    echo(sentence(made))
    echo_files(out)


def weighed(text: str) -> tuple[str, float]:
    """An adapter and its weight: behind the last ``=``, unless the whole text is a folder."""
    place, equals, number = text.rpartition("=")
    if not equals or os.path.exists(text):
        return text, 1.0
    try:
        return place, float(number)
    except ValueError:
        raise UserError(f"{text}: the weight should be a number, not {shown(number)}") from None


def document(out: Path, made: Combined) -> dict[str, Any]:
    """What ``--json`` says."""
    adapter = made.adapter
    assert adapter.origin is not None
    return {
        "out": str(out),
        **adapter.origin.model_dump(mode="json"),
        "method": adapter.method.model_dump(mode="json"),
        "classes": list(adapter.classes),
        "notes": list(made.notes),
        "files": files_in(out),
    }


def sentence(made: Combined) -> str:
    """``lora(rank=16), cat of a (0.7) and b (0.3), with the head of a: 3 classes (cat, dog, ...)``"""
    from mlx_peft.core.text import named

    adapter = made.adapter
    assert adapter.origin is not None
    return f"{adapter.method!r}: {adapter.origin}, {named(adapter.num_classes, adapter.classes)}"
