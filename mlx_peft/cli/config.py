"""``config``: what an experiment amounts to, and whether it is right."""

from __future__ import annotations

import typer

from mlx_peft.cli.common import AsJson, Backend, Config, Overrides, echo, echo_file, echo_json, read_experiment
from mlx_peft.cli.mistakes import GROUP, Answering

app = typer.Typer(
    no_args_is_help=True, context_settings=GROUP, rich_markup_mode=None, help="Show, check or explain configurations."
)


@app.command(cls=Answering)
def show(
    ctx: typer.Context, config: Config, overrides: Overrides = None, backend: Backend = None, as_json: AsJson = False
) -> None:
    """Show an experiment with every default written out."""
    experiment = read_experiment(ctx, config, overrides, backend)

    from mlx_peft.config.files import dump

    if as_json:
        echo_json(experiment.model_dump(mode="json"))
    else:
        echo_file(dump(experiment))


@app.command(cls=Answering)
def validate(ctx: typer.Context, config: Config, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Check an experiment without its data, and without downloading; all that is wrong is said at once."""
    experiment = read_experiment(ctx, config, overrides)

    from convert.base import architecture_of
    from mlx_peft.training.bases import described
    from mlx_peft.training.prepare import check_method

    architecture = architecture_of(experiment.model, described)
    check_method(experiment, architecture, experiment.quantize)
    if as_json:
        echo_json({"config": config, "valid": True, "experiment": experiment.model_dump(mode="json")})
    else:
        echo(f"{config}: valid")


@app.command(cls=Answering)
def schema(as_json: AsJson = False) -> None:
    """Show every key there is, as a JSON Schema: editors complete and check YAML with it."""
    from mlx_peft.config.schema import Experiment

    echo_json(Experiment.model_json_schema())
