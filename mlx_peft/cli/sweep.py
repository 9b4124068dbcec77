"""``sweep``: the runs of a suite, and their table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_peft.cli import completing
from mlx_peft.cli.common import AsJson, Backend, Overrides, echo_json, reading
from mlx_peft.cli.output import kept_elsewhere, said_beside
from mlx_peft.cli.report import show
from mlx_peft.core.text import counted

if TYPE_CHECKING:
    from mlx_peft.studies.ready import SuiteRun
    from mlx_peft.studies.sweep import Outcome

WORKER = (sys.executable, "-m", "mlx_peft.cli.worker")
"""The process of one run; the program's name is its argument."""


def sweep(
    ctx: typer.Context,
    suite: Annotated[
        str,
        typer.Argument(
            metavar="SUITE",
            help="A YAML file, or a suite's name: see `ls suites`.",
            show_default=False,
            autocompletion=completing.suites,
        ),
    ],
    overrides: Overrides = None,
    backend: Backend = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the runs go; runs/SUITE if left out.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make the runs of a suite, and set them side by side.

    Every run is checked before the first one starts. None is made twice, and one that fails does not end the others;
    what was stopped goes on with the same command.
    """
    from mlx_peft.cli.progress import Lines, watch
    from mlx_peft.config import recipes
    from mlx_peft.config.suite import load
    from mlx_peft.studies import ready
    from mlx_peft.studies import sweep as study

    planned = load(recipes.locate(suite, "suite"), **reading(ctx, overrides, backend))
    out = out or Path("runs") / Path(suite).stem
    with watch() as progress:
        runs = ready.check(planned, out, progress.opening, recipes.folder_of(suite))
    note = Lines().note
    outcomes: dict[str, Outcome] = {}
    with said_beside(out / "sweep.json"):
        finished = f", {done} of them finished" if (done := _finished(runs)) else ""
        note(f"{counted(len(runs), 'run')} in {out}{finished}")
        with closing(study.run(runs, out, (*WORKER, ctx.find_root().info_name or ""), note)) as found:
            for outcome in found:
                outcomes[outcome.run.name] = outcome
                if outcome.error is not None:
                    note(f"{outcome.run.name} failed: {outcome.error}")
                write(runs, outcomes, out)
        tell(runs, outcomes, note, as_json=as_json)


def _finished(runs: Sequence[SuiteRun]) -> int:
    return sum(run.folder.result.exists() for run in runs)


def tell(
    runs: Sequence[SuiteRun], outcomes: Mapping[str, Outcome], note: Callable[[str], None], *, as_json: bool
) -> None:
    """Prints what became of the runs, and ends the command with what that means for its status."""
    if as_json:
        echo_json({"runs": [entry(run, outcomes) | {"result": run.folder.read_result()} for run in runs]})
    else:
        finished, damaged = finished_runs(runs)
        for one in damaged:
            note(f"left out, damaged: {one.name}: {one.reason}")
        if finished:
            with kept_elsewhere():
                show(finished, damaged)
    failed = [name for name, outcome in outcomes.items() if outcome.status == "failed"]
    if failed:
        note(f"{len(failed)} of {counted(len(runs), 'run')} failed: {', '.join(failed)}")
    if len(outcomes) < len(runs) or any(outcome.status == "interrupted" for outcome in outcomes.values()):
        note(
            f"interrupted with {_finished(runs)} of {counted(len(runs), 'run')} finished; to go on, give the same "
            "command again"
        )
        raise typer.Exit(130)
    if failed:
        raise typer.Exit(1)


def write(runs: Sequence[SuiteRun], outcomes: Mapping[str, Outcome], out: Path) -> None:
    """Writes what became of each run so far, as ``sweep.json``; the finished ones as ``table.md`` and ``table.csv``."""
    from mlx_peft.core.writing import write_together
    from mlx_peft.report import tables
    from mlx_peft.training.run import write_json

    write_json(out / "sweep.json", {"runs": [entry(run, outcomes) for run in runs]})
    finished, damaged = finished_runs(runs)
    if finished:
        texts = {"table.md": tables.markdown(finished, damaged), "table.csv": tables.to_csv(finished)}
        write_together({out / name: text.encode() for name, text in texts.items()})


def entry(run: SuiteRun, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """What became of a run: finished, failed, interrupted, or waiting for its turn."""
    outcome = outcomes.get(run.name)
    return {
        "name": run.name,
        "run_id": run.run_id,
        "folder": str(run.folder.path),
        "status": "finished" if run.folder.result.exists() else outcome.status if outcome else "waiting",
        "error": outcome.error if outcome else None,
    }


def finished_runs(runs: Sequence[SuiteRun]) -> tuple[list[Any], list[Any]]:
    """Those that are finished, by their names in the suite, for a table; and those of them that are damaged."""
    from mlx_peft.report.gather import Damaged

    found = [_read(run.folder.path, run.name, _written(run)) for run in runs if run.folder.result.exists()]
    finished = [one for one in found if one is not None and not isinstance(one, Damaged)]
    return finished, [one for one in found if isinstance(one, Damaged)]


def _written(run: SuiteRun) -> tuple[int, ...]:
    """When the files that a table is made of were."""
    files = (run.folder.result, run.folder.metrics)
    return tuple(file.stat().st_mtime_ns for file in files if file.exists())


@cache
def _read(folder: Path, name: str, written: tuple[int, ...]) -> Any:
    """A finished run, once as long as it stays as it was: the table is written after each of a thousand."""
    from mlx_peft.core.errors import UserError
    from mlx_peft.report.gather import Damaged, read_run

    try:
        return read_run(folder, name)
    except UserError as error:
        return Damaged(name, str(error))
