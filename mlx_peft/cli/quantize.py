"""``quantize``: a model in few bits."""

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
    echo_json,
    echo_written,
    written_facts,
)


def quantize(
    ctx: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL_OR_RUN",
            help="The folder of a model, a finished run or an adapter.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.", show_default=False)],
    bits: Annotated[int, typer.Option(metavar="8|6|5|4|3|2", help="Of a weight inside the blocks.")] = 4,
    group_size: Annotated[int, typer.Option(metavar="32|64|128", help="Inputs that share a scale and a bias.")] = 64,
    adapter: AdapterName = None,
    model: ModelName = None,
    weights: WeightsToo = None,
    image_size: ImageSize = None,
    backend: Backend = None,
    as_json: AsJson = False,
) -> None:
    """Write a model, or a run merged first, in few bits a weight."""
    from mlx_peft.artifacts.merge import quantize_model
    from mlx_peft.config.quantization import from_options

    written = quantize_model(
        source,
        out,
        from_options(bits, group_size),
        backend_of(ctx, backend),
        name=adapter,
        model=base_of(model, weights, image_size),
        weights=weights,
    )
    if as_json:
        echo_json(written_facts(out, written))
    else:
        echo_written(out, written)
