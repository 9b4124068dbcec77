"""``merge``: an adapter into its base."""

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
    TokensToo,
    WeightsToo,
    backend_of,
    base_of,
    echo,
    echo_json,
    echo_written,
    tokens_of,
    written_facts,
)


def merge(
    ctx: typer.Context,
    run: RunOrAdapter,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.", show_default=False)],
    adapter: AdapterName = None,
    model: ModelName = None,
    weights: WeightsToo = None,
    image_size: ImageSize = None,
    dequantize: Annotated[
        bool, typer.Option("--dequantize", help="Over a quantised base: write a plain model; exact.")
    ] = False,
    requantize: Annotated[
        bool, typer.Option("--requantize", help="Over a quantised base: quantise what was merged again; lossy.")
    ] = False,
    tokens: TokensToo = None,
    backend: Backend = None,
    as_json: AsJson = False,
) -> None:
    """Write a run as a plain model, a folder that timm opens."""
    from mlx_peft.artifacts.merge import merge_run
    from mlx_peft.artifacts.targets import TARGETS

    written = merge_run(
        run, out, backend_of(ctx, backend), name=adapter, model=base_of(model, weights, image_size), weights=weights,
        dequantize=dequantize, requantize=requantize, tokens=tokens_of(tokens),
    )  # fmt: skip
    if as_json:
        echo_json(written_facts(out, written))
        return
    echo_written(out, written)
    if written.quantization is None and written.in_timm:
        echo(f"open it with: {TARGETS['timm'].opened.format(out=out)}")
