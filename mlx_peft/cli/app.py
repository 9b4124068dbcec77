"""The application: which commands there are, and what becomes of a user's mistake."""

from __future__ import annotations

from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from mlx_peft.cli import (
    bench,
    cat,
    combine,
    complete,
    config,
    convert,
    cp,
    data,
    doctor,
    estimate,
    eval,
    explain,
    info,
    ls,
    merge,
    parity,
    predict,
    pull,
    push,
    quantize,
    report,
    serve,
    simulate,
    sweep,
    train,
)
from mlx_peft.cli.mistakes import GROUP, USAGE, Answering
from mlx_peft.core.errors import UserError, shortened
from mlx_peft.core.launched import told_once
from mlx_peft.core.text import printable_lines

LONGEST_LINE = 4000
"""A line of an error's message has at most so many characters: some list every name there is."""


class Commands(TyperGroup):
    """Answers a user's mistake, and what the machine refuses, with one message and status 2; an interrupt with 130."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with told_once(USAGE):
            return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        with told_once(USAGE):
            return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            fail(str(error))
        except MemoryError as error:
            fail(f"this needs more memory than there is{f': {error}' if str(error) else ''}")
        except OSError as error:
            named = "" if error.filename is None else f"{error.filename}: "
            fail(f"{named}{error.strerror or error}")
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from None


def fail(message: str) -> NoReturn:
    """Ends the command with a message on standard error, which may quote whatever a file says."""
    text = "\n".join(shortened(line, LONGEST_LINE) for line in printable_lines(message).split("\n"))
    typer.echo(f"{typer.style('error:', fg='red', bold=True)} {text}", err=True)
    raise typer.Exit(2) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"], **GROUP},
)
COMMANDS = (
    train, estimate, sweep, eval, predict, explain, combine, merge, quantize, simulate, convert, info, push, pull,
    serve, doctor, parity, report, ls, cat, cp, complete,
)  # fmt: skip
for module in COMMANDS:
    app.command(cls=Answering)(getattr(module, module.__name__.rpartition(".")[2]))
app.add_typer(data.app, name="data")
app.add_typer(bench.app, name="bench")
app.add_typer(config.app, name="config")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"mlx-peft {version('mlx-peft')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Parameter-efficient fine-tuning of Vision Transformers, on MLX and PyTorch."""
