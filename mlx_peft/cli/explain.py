"""``explain``: why a model says what it says of images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_peft.cli.answers import LONGEST
from mlx_peft.cli.common import (
    AdapterName,
    AsJson,
    Backend,
    ImageFiles,
    ImageSize,
    ModelName,
    Source,
    TokensToo,
    WeightsToo,
    backend_of,
    base_of,
    echo,
    echo_json,
    standard_input,
    tokens_of,
)
from mlx_peft.cli.device import Device
from mlx_peft.core.errors import UserError, shortened
from mlx_peft.core.text import printable

if TYPE_CHECKING:
    from mlx_peft.artifacts.load import Loaded
    from mlx_peft.report.explanations import Entry


def explain(
    ctx: typer.Context,
    run: Source,
    images: ImageFiles = None,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where to write the pictures, and of several a page.")
    ] = Path("explained"),
    of: Annotated[
        str | None,
        typer.Option(
            "--class", metavar="NAME", help="What the gradient speaks for.", show_default="the likeliest of each image"
        ),
    ] = None,
    blocks: Annotated[
        list[int] | None,
        typer.Option(
            "--block", min=0, metavar="N", help="One to draw, from 0; may be repeated.", show_default="12 at most"
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, max=8, metavar="K", help="How many classes to show for each image.")] = 5,
    arrays: Annotated[bool, typer.Option("--arrays", help="Also write the maps as numbers, .npz.")] = False,
    adapter: AdapterName = None,
    model: ModelName = None,
    weights: WeightsToo = None,
    image_size: ImageSize = None,
    tokens: TokensToo = None,
    backend: Backend = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Draw where attention went, and what became of the tokens.

    It computes in float32. An image that cannot be read is left out and named, and the exit status is then 1.
    """
    from mlx_peft.artifacts.explain import explain
    from mlx_peft.artifacts.load import load_any
    from mlx_peft.cli.progress import watch
    from mlx_peft.data.questions import about
    from mlx_peft.report.explanations import write

    if not images:
        raise UserError("no images are named: name files, folders or lists")
    questions, base = about(images, standard_input()), base_of(model, weights, image_size)
    loaded = load_any(
        run, backend_of(ctx, backend, device), name=adapter, precision="float32", model=base, weights=weights,
        tokens=tokens_of(tokens),
    )  # fmt: skip
    _check_blocks(blocks or [], loaded)
    for note in loaded.notes:
        echo(f"note: {note}", err=True)
    with watch() as progress:
        each = explain(loaded, questions, of, top, progress.opening)
        found = write(out, each, loaded.task, run.resolve().name, blocks=blocks, arrays=arrays)
    if as_json:
        echo_json({"run": str(run), "out": str(out), "images": found})
    _tell(found, out, loaded, alone=as_json)


def _check_blocks(blocks: list[int], loaded: Loaded) -> None:
    depth = loaded.base.architecture.depth
    if beyond := [block for block in blocks if block >= depth]:
        raise UserError(f"--block: the model has no block {beyond[0]}: it has {depth}, counted from 0")


def _tell(found: list[Entry], out: Path, loaded: Loaded, *, alone: bool) -> None:
    """The files with what the model says, unless a document stands alone; and what was left out, which is an error."""
    from mlx_peft.report.explanations import PAGE

    drawn = [entry for entry in found if "error" not in entry]
    if not alone:
        for entry in drawn:
            echo(f"{out / entry['picture']}  {loaded.task.line(entry['predictions'][0])}")
        if len(found) > 1:
            echo(out / PAGE)
    for entry in found:
        if "error" in entry:
            echo(f"left out, unreadable: {shortened(printable(entry['error']), LONGEST)}", err=True)
    if len(drawn) < len(found):
        raise typer.Exit(1)
