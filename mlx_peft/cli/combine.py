"""``combine``: several adapters into one."""

from __future__ import annotations

import os
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
    from mlx_peft.artifacts.combine import Combined, Wish
    from mlx_peft.cli.common import BackendName


Adapters = Annotated[
    list[str],
    typer.Argument(
        metavar="ADAPTER[=WEIGHT]",
        help="Folders of adapters or runs of one base, with their weights; 1, if left out.",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="FOLDER", help="The folder to write; of --curve its picture.", show_default=False),
]
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
Alphas = Annotated[
    str | None,
    typer.Option(
        "--curve",
        metavar="FIRST:LAST:STEP",
        help="Measure the models between base and adapter in its place: 0:1:0.1, or 0,0.5,1.",
        show_default=False,
    ),
]
SplitOfCurve = Annotated[
    Literal["train", "val", "test"] | None,
    typer.Option("--split", metavar="train|val|test", help="Of --curve: the images.", show_default="val"),
]


def combine(
    ctx: typer.Context,
    adapters: Adapters,
    out: Out = None,
    how: How = None,
    head: Head = None,
    rank: Rank = None,
    density: Density = None,
    seed: Seed = None,
    majority_sign_method: MajoritySign = None,
    curve: Alphas = None,
    split: SplitOfCurve = None,
    model: ModelName = None,
    weights: WeightsToo = None,
    image_size: ImageSize = None,
    backend: Backend = None,
    as_json: AsJson = False,
) -> None:
    """Combine adapters of one base into a new one.

    Without --how the result is exactly the weighted sum of what the adapters add to their base. Weights are taken as
    they are: 0.5 each is the mean of two; ADAPTER=0.5 alone is half of one. With --curve nothing is combined for good:
    the models theta_0 + a (theta_1 - theta_0) are measured on a run's images, or on data.root=FOLDER.
    """
    from mlx_peft.artifacts.ahead import must_be_new
    from mlx_peft.artifacts.combine import Wish
    from mlx_peft.artifacts.combine import combine as made_one

    wish = Wish(how, rank, density, seed, majority_sign_method, head)
    images = [text for text in adapters if text.startswith("data.") and "=" in text and curve]
    given = dict(weighed(text) for text in adapters if text not in images)
    if len({*map(os.path.realpath, given)}) + len(images) < len(adapters):
        raise UserError("an adapter is named twice: give it one weight")
    if curve is not None:
        measure(given, curve, wish, split, backend_of(ctx, backend), weights, images, out, as_json)
        return
    if split is not None:
        raise UserError("--split is for --curve: nothing is measured without it")
    if out is None:
        raise UserError("say which folder to write", arguments=("out",))
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


def measure(
    given: dict[str, float],
    curve: str,
    wish: Wish,
    split: Literal["train", "val", "test"] | None,
    backend: BackendName,
    weights: str | None,
    images: list[str],
    out: Path | None,
    as_json: bool,
) -> None:
    """The curve, on standard output and, where a folder is named, as a spreadsheet and a picture."""
    from mlx_peft.artifacts.ahead import must_hold_files
    from mlx_peft.artifacts.interpolate import interpolate
    from mlx_peft.cli.progress import watch
    from mlx_peft.report import interpolation

    if out is not None:
        must_hold_files(out)
    with watch() as progress:
        found = interpolate(
            given, numbers(curve), wish, split, backend, weights=weights, overrides=images, watch=progress.opening
        )
    for note in found.notes:
        echo(f"note: {note}", err=True)
    if as_json:
        echo_json(interpolation.document(found))
    else:
        echo("\n".join(interpolation.lines(found)))
    if out is not None:  # after all is said: a full disk does not take back what was measured
        for path in interpolation.write(out, found):
            echo(path, err=as_json)


def numbers(text: str) -> list[float]:
    """``0:1:0.25``, both ends among them, or ``0,0.5,1``. Raises UserError for anything else."""
    try:
        if ":" not in text:
            return [float(one) for one in text.split(",")]
        first, last, step = map(Decimal, text.split(":"))
        count = (last - first) / step
        if not 0 <= count <= 1000:
            raise ValueError
        return [float(first + number * step) for number in range(int(count) + 1)]
    except (ValueError, ArithmeticError):
        raise UserError(f"--curve should be like 0:1:0.1 or 0,0.5,1, not {shown(text)}") from None


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
