"""``data``: images looked through before anything is trained on them."""

from __future__ import annotations

import typer

from mlx_peft.cli.data import check, preview
from mlx_peft.cli.mistakes import GROUP, Answering

app = typer.Typer(
    no_args_is_help=True,
    context_settings=GROUP,
    rich_markup_mode=None,
    help="Look a data set through before training on it.",
)
app.command(cls=Answering)(check.check)
app.command(cls=Answering)(preview.preview)
