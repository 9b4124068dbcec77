"""``explain``: why a model says what it says of images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlx_peft.cli.common import (
    AdapterName,
    AsJson,
    Backend,
    ImageSize,
    ModelName,
    WeightsToo,
    backend_of,
    base_of,
    echo,
    echo_json,
)
from mlx_peft.core.errors import UserError
from mlx_peft.core.text import printable


def explain(
    ctx: typer.Context,
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="A finished run, an adapter, a folder of several of either, or a model.",
            show_default=False,
        ),
    ],
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE", help="Image files, and folders of them at any depth.", show_default=False),
    ],
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
    backend: Backend = None,
    as_json: AsJson = False,
) -> None:
    """Draw where a model's attention went, and what became of its tokens.

    It computes in float32. An image that cannot be read is left out and named, and the exit status is then 1.
    """
    from mlx_peft.artifacts.explain import explain
    from mlx_peft.artifacts.load import load_any
    from mlx_peft.cli.progress import watch
    from mlx_peft.data.given import files
    from mlx_peft.report.explanations import PAGE, write

    paths = files(images)
    base = base_of(model, weights, image_size)
    loaded = load_any(run, backend_of(ctx, backend), name=adapter, precision="float32", model=base, weights=weights)
    depth = loaded.base.architecture.depth
    if beyond := [block for block in blocks or [] if block >= depth]:
        raise UserError(f"--block: the model has no block {beyond[0]}: it has {depth}, counted from 0")
    for note in loaded.notes:
        echo(f"note: {note}", err=True)
    with watch() as progress:
        each = explain(loaded, paths, of, top, progress.opening)
        found = write(out, each, loaded.task, run.resolve().name, blocks=blocks, arrays=arrays)
    if as_json:
        echo_json({"run": str(run), "out": str(out), "images": found})
    else:
        for entry in found:
            if "error" not in entry:
                echo(f"{out / entry['picture']}  {loaded.task.line(entry['predictions'][0])}")
        if len(found) > 1:
            echo(out / PAGE)
    left_out = [entry for entry in found if "error" in entry]
    for entry in left_out:
        echo(f"left out, unreadable: {printable(entry['error'])}", err=True)
    if left_out:
        raise typer.Exit(1)
