"""A study on the fake backend, slow enough to be killed in: ``slowly.py drive HOW FOLDER SUITE`` is its driver, and
``slowly.py`` alone the process of one of its runs. HOW is a number of jobs, or ``ray``."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import fake_backend

from mlx_peft.cli import worker
from mlx_peft.config import suite
from mlx_peft.studies import processes, ready
from mlx_peft.studies.graph import Graph, Node
from mlx_peft.studies.on_ray import LOCAL, on_cluster
from mlx_peft.studies.processes import Here
from mlx_peft.studies.ready import Checker
from mlx_peft.studies.record import Before, read_record
from mlx_peft.studies.sweep import Sweep
from mlx_peft.training.run import RunFolder, is_untested

STEP = 0.03
"""Seconds that a step takes."""

SO_OFTEN = 100
"""A run may die so often without coming further: more often than it is killed, wherever these kills happen to be."""

BEGUN = "begun"
"""The folder, in the study's, with a file for each process of a run, by its number: which run, and whether it was
finished already when the process computed something for it."""


class Patch:
    """As pytest's, for a process that ends with it."""

    setattr = staticmethod(setattr)

    @staticmethod
    def setitem(there: dict[str, Any], key: str, value: Any) -> None:
        there[key] = value


class Slow(fake_backend.FakeTrainer):
    def train_step(self, *arguments: Any, **options: Any) -> Any:
        time.sleep(STEP)
        return super().train_step(*arguments, **options)


class Noting(fake_backend.FakeModel):
    """A model that notes what it computes for."""

    told: dict[str, Any] | None = None

    def features(self, images: Any) -> Any:
        if self.told is not None:
            note(self.told)
            Noting.told = None
        return super().features(images)


def note(order: dict[str, Any]) -> None:
    out = RunFolder(Path(order["out"]))
    result = out.read_result()
    finished = result is not None and not (order.get("test", True) and is_untested(result))
    file = out.path.parent / BEGUN / str(os.getpid())
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"out": out.path.name, "finished": finished}))


class Silent:
    logs = True

    def started(self, node: Node, graph: Graph) -> None: ...

    def tick(self, graph: Graph) -> None: ...


def standing_in() -> None:
    """Puts the fake backend and its data in the place of any."""
    dataset = fake_backend.make_dataset()
    fake_backend.install(Patch, dataset)
    setattr(ready, "open_dataset", lambda data, watch: dataset)  # noqa: B010


def one_run() -> None:
    """The process of a run."""
    setattr(fake_backend, "FakeModel", Noting)  # noqa: B010
    setattr(fake_backend, "build_trainer", lambda experiment, classes, base: Slow(base, classes))  # noqa: B010
    read = json.loads

    def heard(text: Any, **options: Any) -> Any:
        found = read(text, **options)
        if isinstance(found, dict) and {"out"} < found.keys():
            Noting.told = found
        return found

    setattr(worker.json, "loads", heard)  # noqa: B010
    worker.work()


def drive(how: str, out: Path, file: Path) -> int:
    """Makes the study in a folder: 0 where all runs are finished."""
    command = (sys.executable, __file__)
    before = Before.of(read_record(out))
    with ExitStack() as stack:
        graph = Graph(suite.load(file), Checker(out), before)
        local = on_cluster(LOCAL, command, out) if how == "ray" else nullcontext(Here(command, int(how)))
        executor: processes.Executor = stack.enter_context(local)
        for _ in Sweep(graph, out, executor, Silent(), attempts=SO_OFTEN).run():
            pass
    return 0 if all(node.status == "finished" for node in graph.nodes) else 1


if __name__ == "__main__":
    standing_in()
    if sys.argv[1:2] == ["drive"]:
        sys.exit(drive(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])))
    one_run()
