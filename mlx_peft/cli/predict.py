"""``predict``: the classes of images."""

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
    RunOrAdapter,
    WeightsToo,
    backend_of,
    base_of,
    echo,
    echo_json,
)
from mlx_peft.core.text import printable


def predict(
    ctx: typer.Context,
    run: RunOrAdapter,
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE", help="Image files, and folders of them at any depth.", show_default=False),
    ],
    adapter: AdapterName = None,
    top: Annotated[int, typer.Option(min=1, metavar="K", help="How many classes to show for each image.")] = 1,
    model: ModelName = None,
    weights: WeightsToo = None,
    image_size: ImageSize = None,
    backend: Backend = None,
    as_json: AsJson = False,
) -> None:
    """Say what is in images.

    One that cannot be read is left out and named, and the exit status is then 1; 2 where none can be read.
    """
    from mlx_peft.artifacts import load
    from mlx_peft.artifacts.place import is_model, must_not_name
    from mlx_peft.artifacts.predict import predict as answer
    from mlx_peft.cli.progress import watch
    from mlx_peft.data.dataset import FileImages
    from mlx_peft.data.depth import shallow
    from mlx_peft.data.given import files

    paths = files(images)
    computing = backend_of(ctx, backend)
    if is_model(run):
        must_not_name(run, weights)
        loaded = load.load_model(run, computing)
    else:
        base = base_of(model, weights, image_size)
        loaded = load.load_run(run, computing, name=adapter, model=base, weights=weights)
    for note in loaded.notes:
        echo(f"note: {note}", err=True)
    with watch() as progress:
        results = answer(loaded, paths, top, progress.opening)
    answered = [result for result in results if "error" not in result]
    for note in shallow(FileImages(Path(), tuple(result["image"] for result in answered))):
        echo(f"note: {note}", err=True)
    if as_json:
        echo_json(results)
    else:
        width = max(len(printable(result["image"])) for result in answered)
        for result in answered:
            for rank, guess in enumerate(result["predictions"]):
                image = "" if rank else printable(result["image"])
                echo(f"{image:<{width}}  {loaded.task.line(guess)}")
    for result in results:
        if "error" in result:
            echo(f"left out, unreadable: {result['error']}", err=True)
    if len(answered) < len(results):
        raise typer.Exit(1)
