"""The runs of a study, each in a process of its own: none is made twice, and none ends the others."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Protocol

from mlx_peft.core.errors import UserError
from mlx_peft.core.signals import handled
from mlx_peft.studies.graph import Graph, Node
from mlx_peft.studies.processes import INTERRUPTED, Executor, Reply, order_of
from mlx_peft.studies.record import write_record
from mlx_peft.training.run import RunFolder

ATTEMPTS = 3
"""A run whose process dies is taken up again; where it dies so often without coming further in between, it failed."""

TICK = 0.5
"""Seconds from one look at what is under way to the next, for whoever watches."""


class Watcher(Protocol):
    """Is told how a study goes on."""

    logs: bool
    """Whether each process has a file for what it says: else it is said where this process says it."""

    def started(self, node: Node, graph: Graph) -> None: ...

    def tick(self, graph: Graph) -> None:
        """Some time has passed."""
        ...


@dataclass
class UnderWay:
    """A run that is being made."""

    node: Node
    log: Path | None
    deaths: int = 0
    reached: int = 0
    """When its checkpoint was written, as it was when its process last died."""


@dataclass
class Sweep:
    """The making of a study in a folder."""

    graph: Graph
    out: Path
    executor: Executor
    watcher: Watcher
    attempts: int = ATTEMPTS
    stopping: bool = False
    under_way: dict[Future[Reply], UnderWay] = field(default_factory=dict)

    def run(self) -> Generator[Node, None, None]:
        """Makes the runs that are not finished, and gives each node once nothing more becomes of it.

        SIGINT, SIGTERM and SIGHUP are handed on to the runs at work and end the sweep. ``study.json`` is written after
        each change. Raises UserError where another sweep works in the folder.
        """

        def stop(number: int, frame: FrameType | None) -> None:
            self.stopping = True
            self.executor.hand_on(number)

        told: set[Node] = set()
        with RunFolder(self.out).locked(), handled(stop), self.all_over():
            while True:
                self.graph.advance()
                self.start()
                self.write()
                for node in self.graph.nodes:
                    if node.settled and node not in told:
                        told.add(node)
                        yield node
                if not self.under_way and (self.stopping or not self.graph.startable(())):
                    return
                self.wait()

    @contextmanager
    def all_over(self) -> Iterator[None]:
        """However the block ends, no run goes on after it."""
        try:
            yield
        finally:
            if self.under_way:
                self.executor.hand_on(signal.SIGTERM)
                wait(self.under_way)

    def start(self) -> None:
        """Starts what may start and has room."""
        if self.stopping:
            return
        busy = [one.node.run.folder.path for one in self.under_way.values() if one.node.run is not None]
        for node in self.graph.startable(busy):
            if self.executor.room is not None and len(self.under_way) >= self.executor.room:
                return
            log = self.out / "logs" / f"{node.name}.log" if self.watcher.logs else None
            if log is not None:
                log.parent.mkdir(exist_ok=True)
            self.watcher.started(node, self.graph)
            self.submit(UnderWay(node, log))

    def submit(self, one: UnderWay) -> None:
        assert one.node.run is not None
        one.node.status = "running"
        self.under_way[self.executor.submit(order_of(one.node.run), one.node.resources, one.log)] = one

    def wait(self) -> None:
        """Waits until something is done."""
        while self.under_way:
            done, _ = wait(self.under_way, timeout=TICK, return_when=FIRST_COMPLETED)
            self.watcher.tick(self.graph)
            for future in done:
                self.settle(self.under_way.pop(future), future.result())
            if done:
                return

    def settle(self, one: UnderWay, reply: Reply) -> None:
        """What has become of a run whose process ended."""
        node = one.node
        assert node.run is not None
        node.seconds = (node.seconds or 0.0) + reply.seconds
        if reply.status == 0 and self.whole(node):
            node.status = "finished"
        elif node.settled:  # its result cannot be read
            return
        elif reply.status == INTERRUPTED or self.stopping:
            node.status = "interrupted"
            if not self.stopping:  # somebody asked a run itself to stop, and means the study
                self.stopping = True
                self.executor.hand_on(signal.SIGTERM)
        elif reply.died and not self.hopeless(one):
            self.submit(one)
        else:
            node.fail(reply.explained(one.log))

    def whole(self, node: Node) -> bool:
        """Whether there is the result of a run whose process says so; one that cannot be read has failed alone."""
        assert node.run is not None
        try:
            return node.run.finished
        except UserError as error:
            node.fail(str(error))
            return False

    def hopeless(self, one: UnderWay) -> bool:
        """Whether a run whose process died has died too often without coming further."""
        assert one.node.run is not None
        last = one.node.run.folder.last
        reached = last.stat().st_mtime_ns if last.exists() else 0
        one.deaths = 1 if reached > one.reached else one.deaths + 1
        one.reached = reached
        return one.deaths >= self.attempts

    def write(self) -> None:
        write_record(self.out, self.graph.record(self.out))
