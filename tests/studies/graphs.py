"""Graphs of runs that stand for themselves, and their making by processes that only look like training."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from hanging import HUNG

from mlx_peft.config.schema import Experiment
from mlx_peft.config.step import Step
from mlx_peft.config.study import Candidate, Entry, Planned, Study
from mlx_peft.config.tuning import Resources
from mlx_peft.studies.derive import derive
from mlx_peft.studies.graph import Graph, Node
from mlx_peft.studies.processes import Here, Order, Reply
from mlx_peft.studies.ready import Checker
from mlx_peft.studies.record import Before, read_record
from mlx_peft.studies.sweep import Sweep
from mlx_peft.training.train import train

WORKER = """
import json, os, pathlib, signal, sys, time
order = json.loads(sys.stdin.readline())
out, epochs = pathlib.Path(order["out"]), order["experiment"]["train"]["epochs"]
out.mkdir(parents=True, exist_ok=True)
with open(out / "starts", "a") as starts:
    starts.write("started\\n")
(out / "order.json").write_text(json.dumps(order["experiment"]))
(out / "beside.json").write_text(json.dumps(order["beside"]))
if epochs == 2:
    json.dump({"error": "the loss is nan"}, sys.stdout)
    sys.exit(2)
if epochs == 3:
    sys.exit("Traceback")
if epochs == 4:
    os.kill(os.getpid(), signal.SIGKILL)
if epochs == 5:
    signals = []
    signal.signal(signal.SIGINT, lambda number, frame: signals.append("int"))
    signal.signal(signal.SIGTERM, lambda number, frame: signals.append("term"))
    signal.signal(signal.SIGHUP, lambda number, frame: signals.append("hup"))
    (out / "ready").touch()
    deadline = time.time() + HUNG
    while not signals and time.time() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)  # for a second signal, which should not come
    (out / "signals").write_text(" ".join(signals))
    sys.exit(130)
if epochs == 7:  # waits for another of its kind: both are at work at once
    deadline = time.time() + HUNG
    while len(list(out.parent.glob("*/starts"))) < 2 and time.time() < deadline:
        time.sleep(0.01)
if epochs == 8:
    print("a library says something")
    sys.exit(2)
(out / "result.json").write_text("{" if epochs == 9 else '{"run_id": "made"}')
""".replace("HUNG", str(HUNG))
"""Stands for a training run: what becomes of it, its epochs say."""
COMMAND = (sys.executable, "-I", "-S", "-c", WORKER)


class Inside:
    """Makes runs in this process, at once, and keeps which."""

    room = 1

    def __init__(self) -> None:
        self.orders: list[Order] = []

    def submit(self, order: Order, resources: Resources, log: Path | None) -> Future[Reply]:
        self.orders.append(order)
        future: Future[Reply] = Future()
        if "step" in order:
            derive(Path(order["of"]), Step.model_validate(order["step"]), Path(order["out"]))
        else:
            train(Experiment.model_validate(order["experiment"]), Path(order["out"]), resume=True, test=order["test"])
        future.set_result(Reply(0))
        return future

    def hand_on(self, number: int) -> None:
        raise AssertionError("nobody asks to stop")


def never(values: Any) -> Candidate:
    raise AssertionError("nothing is searched for")


def study_of(planned: Sequence[Planned]) -> Study:
    """Runs of which nothing is chosen, each with what is made of it."""
    entries = []
    for run in planned:
        if run.step is None:
            finals = (run, *(step for step in planned if step.of == run.name))
            entries.append(Entry(run.name, {}, (Candidate({}, (), finals),), Resources(), None, never))
    return Study(tuple(entries))


def graph_of(
    planned: Sequence[Planned], out: Path, beside: Path | None = None, *, retry: bool = False, checker: Any = None
) -> Graph:
    """The graph of such runs, as it stands in a folder; ``checker`` has checked them before."""
    before = Before.of(read_record(out), retry=retry)
    return Graph(study_of(planned), checker or Checker(out, beside=beside), before)


class Notes:
    """A watcher that keeps what it is told."""

    logs = False

    def __init__(self) -> None:
        self.started_runs: list[str] = []
        self.most = 0

    def started(self, node: Node, graph: Graph) -> None:
        self.started_runs.append(node.name)
        self.most = max(self.most, 1 + sum(one.status == "running" for one in graph.nodes))

    def tick(self, graph: Graph) -> None:
        pass


def sweep_of(graph: Graph, out: Path, notes: Notes | None = None, jobs: int = 1, command: Any = COMMAND) -> Sweep:
    return Sweep(graph, out, Here(command, jobs), notes or Notes())


def made(graph: Graph, out: Path, notes: Notes | None = None, jobs: int = 1) -> dict[str, tuple[str, str | None]]:
    """Makes what there is to make: what has become of each run, and why."""
    for _ in sweep_of(graph, out, notes, jobs).run():
        pass
    return {node.name: (node.status, node.error) for node in graph.nodes}


def folder_of(graph: Graph, name: str) -> Path:
    return next(node.run.folder.path for node in graph.nodes if node.name == name and node.run is not None)


def starts(graph: Graph) -> dict[str, int]:
    """How often each run was begun."""
    files = {node.name: folder_of(graph, node.name) / "starts" for node in graph.nodes}
    return {name: len(file.read_text().splitlines()) if file.exists() else 0 for name, file in files.items()}
