"""``complete``: the script by which a shell completes the commands."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from mlx_peft.cli.common import echo_file
from mlx_peft.cli.completing import variable

END = "    return 0"
NOTHING_BEHIND = "    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace\n"
"""In bash: a key is followed by its value, and not by the space that stands behind a whole word."""


def complete(
    ctx: typer.Context,
    shell: Annotated[
        Literal["bash", "zsh", "fish"], typer.Argument(metavar="bash|zsh|fish", help="The shell.", show_default=False)
    ],
) -> None:
    """Print the script by which a shell completes the commands.

    In bash and zsh: eval "$(mlx-peft complete bash)"; in fish: mlx-peft complete fish | source.
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    program = ctx.find_root().info_name or ""
    script = get_completion_script(prog_name=program, complete_var=variable(program), shell=shell)
    echo_file(f"{script.replace(END, NOTHING_BEHIND + END)}\n")
