"""``sweep``: the runs of a suite, and their table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_peft.cli import completing
from mlx_peft.cli.common import AsJson, Backend, Overrides, echo, echo_json, reading
from mlx_peft.cli.output import kept_elsewhere, said_beside
from mlx_peft.cli.report import show
from mlx_peft.core.errors import UserError
from mlx_peft.core.text import counted

if TYPE_CHECKING:
    from mlx_peft.studies.graph import Graph, Node
    from mlx_peft.studies.processes import Executor
    from mlx_peft.studies.ready import SuiteRun

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
    jobs: Annotated[int, typer.Option("--jobs", min=1, max=1024, metavar="N", help="So many runs at a time.")] = 1,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray", metavar="ADDRESS", help="Make them on this Ray cluster; local: on one of this machine alone."
        ),
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Make those again that failed.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what there is to make, and make nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make the runs of a suite, and set them side by side.

    Every run is checked before the first one starts. What the suite tunes is chosen on validation images; the test
    split is read once by each final run. No run is made twice, and one that fails does not end the others; what was
    stopped goes on with the same command.
    """
    if ray is not None and jobs > 1:
        raise UserError("--jobs is for this machine; on a cluster (--ray) the hosts decide how many runs they take")
    from mlx_peft.cli.board import watching
    from mlx_peft.studies.record import RECORD
    from mlx_peft.studies.sweep import Sweep

    out = out or Path("runs") / Path(suite).stem
    graph = planned(suite, out, reading(ctx, overrides, backend), retry=retry)
    if dry_run:
        tell_plan(graph, out, jobs, as_json=as_json)
        return
    command = (*WORKER, ctx.find_root().info_name or "")
    with said_beside(out / RECORD), executing(command, jobs, ray, out, graph) as executor:
        with watching(jobs, logs=jobs > 1 or ray is not None) as watcher:
            note = watcher.note
            finished = f", {done} of them finished" if (done := _finished(graph)) else ""
            note(f"{counted(len(graph.nodes), 'run')} in {out}{finished}")
            made = Sweep(graph, out, executor, watcher)
            with closing(made.run()) as settled:
                for node in settled:
                    if node.error is not None:
                        note(f"{node.name} failed: {node.error}")
                    write_tables(graph, out)
        tell(graph, note, as_json=as_json)


def planned(suite: str, out: Path, how: dict[str, Any], *, retry: bool) -> Graph:
    """The study of a suite, as it stands in a folder. Raises UserError for all that is wrong with any of its runs."""
    from mlx_peft.cli.progress import watch
    from mlx_peft.config import recipes
    from mlx_peft.config.suite import load
    from mlx_peft.studies.graph import Graph
    from mlx_peft.studies.ready import Checker
    from mlx_peft.studies.record import Before, read_record

    study = load(recipes.locate(suite, "suite"), **how)
    before = Before.of(read_record(out), retry=retry)
    with watch() as progress:
        return Graph(study, Checker(out, progress.opening, recipes.folder_of(suite)), before)


@contextmanager
def executing(command: tuple[str, ...], jobs: int, address: str | None, out: Path, graph: Graph) -> Iterator[Executor]:
    """What makes the runs, for as long as the block runs."""
    if address is None:
        from mlx_peft.studies.processes import Here

        yield Here(command, jobs)
        return
    from mlx_peft.studies.on_ray import on_cluster

    with on_cluster(address, command, out, [line.entry.resources for line in graph.lines]) as executor:
        yield executor


def _finished(graph: Graph) -> int:
    return sum(node.status == "finished" for node in graph.nodes)


def tell_plan(graph: Graph, out: Path, at_once: int, *, as_json: bool) -> None:
    """What there is to make, and how long it will take by what was measured."""
    from mlx_peft.cli.board import told
    from mlx_peft.studies.remaining import remaining

    left = remaining(graph.nodes, at_once)
    if as_json:
        seconds = {"runs": left.runs, "seconds": left.seconds, "measured": left.measured}
        echo_json(graph.record(out).model_dump(mode="json") | {"left": seconds})
        return
    for node in graph.nodes:
        echo(f"{node.kind:<6} {node.status:<9} {node.name}")
    echo(told(left, at_once))


def tell(graph: Graph, note: Callable[[str], None], *, as_json: bool) -> None:
    """Prints what became of the runs, and ends the command with what that means for its status."""
    nodes = graph.nodes
    if as_json:
        entries = [entry(node) | {"result": node.run and node.run.folder.read_result()} for node in nodes]
        echo_json({"runs": entries, "choices": [choice.model_dump(mode="json") for choice in graph.choices]})
    else:
        finished, damaged = finished_runs(nodes)
        for one in damaged:
            note(f"left out, damaged: {one.name}: {one.reason}")
        with kept_elsewhere():
            for line in chosen(graph):
                echo(line)
            if finished:
                show(finished, damaged)
    failed = [node.name for node in nodes if node.status == "failed"]
    if failed:
        note(f"{len(failed)} of {counted(len(nodes), 'run')} failed: {', '.join(failed)}; --retry makes them again")
    if any(not node.settled for node in nodes):
        note(
            f"interrupted with {_finished(graph)} of {counted(len(nodes), 'run')} finished; to go on, give the same "
            "command again"
        )
        raise typer.Exit(130)
    if failed:
        raise typer.Exit(1)


def chosen(graph: Graph) -> list[str]:
    """A line for each choice: ``lora: train.optimizer.lr=0.001 (val.top1 0.9100, the best of 3)``."""
    lines = []
    for choice in graph.choices:
        if choice.chosen is None:
            continue
        one = choice.candidates[choice.chosen]
        values = ", ".join(f"{key}={value}" for key, value in one.changes.items())
        lines.append(
            f"{choice.label}: {values} ({choice.metric} {one.score:.4f}, the best of {len(choice.candidates)})"
        )
    return [*lines, ""] if lines else []


def write_tables(graph: Graph, out: Path) -> None:
    """Writes the finished runs as ``table.md`` and ``table.csv``."""
    from mlx_peft.core.writing import write_together
    from mlx_peft.report import tables

    finished, damaged = finished_runs(graph.nodes)
    if finished:
        texts = {"table.md": tables.markdown(finished, damaged), "table.csv": tables.to_csv(finished)}
        write_together({out / name: text.encode() for name, text in texts.items()})


def entry(node: Node) -> dict[str, Any]:
    """What became of a run."""
    run = node.run
    return {
        "name": node.name,
        "kind": node.kind,
        "label": node.label,
        "run_id": run and run.run_id,
        "folder": run and str(run.folder.path),
        "status": node.status,
        "error": node.error,
    }


def finished_runs(nodes: Sequence[Node]) -> tuple[list[Any], list[Any]]:
    """Those that are finished, by their names in the suite, for a table; and those of them that are damaged.

    A run that was made to choose by alone is no line of it.
    """
    from mlx_peft.report.gather import Damaged

    runs = [node.run for node in nodes if node.status == "finished" and node.kind != "tune" and node.run is not None]
    found = [_read(run.folder.path, run.name, _written(run)) for run in runs]
    finished = [one for one in found if one is not None and not isinstance(one, Damaged)]
    return finished, [one for one in found if isinstance(one, Damaged)]


def _written(run: SuiteRun) -> tuple[int, ...]:
    """When the files that a table is made of were."""
    files = (run.folder.result, run.folder.metrics)
    return tuple(file.stat().st_mtime_ns for file in files if file.exists())


@cache
def _read(folder: Path, name: str, written: tuple[int, ...]) -> Any:
    """A finished run, once as long as it stays as it was: the table is written after each of a thousand."""
    from mlx_peft.report.gather import Damaged, read_run

    try:
        return read_run(folder, name)
    except UserError as error:
        return Damaged(name, str(error))
