"""A user's mistake in the words of this command line: the options that would mend it, and the commands that help.

What raises a ``UserError`` stands below the commands and knows none of their options. It names arguments; each command
knows which of its own options set them.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from mlx_peft.core.errors import Command, UserError, shown
from mlx_peft.core.launched import told_once

GROUP = {"default_map": {"help": False}}
"""Settings of a command that has commands of its own. That help was not asked for is said, since typer would load
pydantic, which takes longer than all else of a help, to make that of nothing."""

USAGE: type[Exception] = typer.BadParameter.__bases__[0]
"""What typer raises at a command line that it does not understand. Of several processes that have the same one, as
torchrun starts them, the first says so."""


class Answering(TyperCommand):
    """A command that shows its own options beside what is wrong."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with told_once(USAGE):
            must_not_be_empty(args)
            try:
                return super().parse_args(ctx, args)
            except typer.BadParameter as error:
                raise misread(error, ctx) from error

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            raise UserError(answer(error, ctx)) from error


class AnsweringGroup(TyperGroup):
    """The same, of a command that has commands of its own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        must_not_be_empty(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            raise UserError(answer(error, ctx)) from error


def must_not_be_empty(args: Sequence[str]) -> None:
    """Raises UserError where a word of a command line is empty, as that of a shell's variable that is not set.

    As a path it would be the working directory.
    """
    for number, word in enumerate(args):
        if not word:
            where = f", behind {args[number - 1]}" if number else ""
            raise UserError(f"an argument is empty{where}: a name or a path is wanted; '.' is this folder")
        if word.startswith("--") and word.find("=") == len(word) - 1:
            raise UserError(f"{word} has nothing behind it: a name or a path is wanted; '.' is this folder")


def answer(error: UserError, ctx: typer.Context) -> str:
    """The error's text, with the options of ``ctx``'s command that set its arguments, and below it a command."""
    options = ", ".join(filter(None, (option(ctx.command, name) for name in error.arguments)))
    text = str(error)
    if options:
        text += f"\n  options: {options}" if "\n" in text else f" ({options})"
    return text if error.command is None else f"{text}\n  {help_line(error.command, ctx)}"


def option(command: Any, argument: str) -> str | None:
    """How a command is given an argument: ``--out RUN``, ``OUT`` or ``--resume``; None where it has no such one."""
    parameter = next((one for one in command.params if one.name == argument), None)
    if parameter is None:
        return None
    metavar = parameter.metavar or argument.upper()
    if parameter.param_type_name == "argument":
        return metavar
    return parameter.opts[0] if parameter.is_flag else f"{parameter.opts[0]} {metavar}"


BOUNDS = {"greater_than_equal": ("at least", "ge"), "less_than_equal": ("at most", "le")}
KINDS = {"int_parsing": "a whole number", "int_from_float": "a whole number", "float_parsing": "a number"}


def misread(error: typer.BadParameter, ctx: Any) -> Exception:
    """What an option or an argument cannot be, in a sentence; the error itself where it is not about a value."""
    from pydantic import ValidationError

    reason, parameter = error.__cause__, error.param
    if not isinstance(reason, ValidationError) or parameter is None:
        return error
    detail = reason.errors(include_url=False)[0]
    kind, value = detail["type"], shown(detail["input"])
    name = parameter.metavar if parameter.param_type_name == "argument" else parameter.opts[0]
    if kind in BOUNDS:
        words, bound = BOUNDS[kind]
        text = f"{name} should be {words} {detail['ctx'][bound]}, not {value}"
    elif kind in KINDS:
        text = f"{name} should be {KINDS[kind]}, not {value}"
    elif kind == "value_error":
        text = f"{name}: {str(detail['ctx']['error']).removesuffix('.')}"
    else:
        return error
    return UserError(f"{text}\n  see: {ctx.command_path} --help")


def help_line(command: Command, ctx: typer.Context) -> str:
    """A command as the running program's shell takes it, behind what it is good for."""
    root: Any = ctx.find_root()
    return spelled(command, root.command, root.info_name)


def spelled(command: Command, commands: Any, program: str) -> str:
    """``to go on: torch-ref train runs/a/config.yaml --out runs/a --resume``."""
    found = commands.commands[command.words[0]]
    flags = {parameter.name: parameter.opts[0] for parameter in found.params}
    words = [f"{command.purpose}: {program}", *map(shlex.quote, command.words)]
    for name, value in command.options.items():
        words += [flags[name]] if value is True else [flags[name], shlex.quote(str(value))]
    return " ".join(words)
