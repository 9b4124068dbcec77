"""Where runs are made: tasks of a Ray cluster, each of which gives its run a process of its own.

The hosts of a cluster see the study's folder, the images and the weights at the same paths, and have this package
installed. What a run is does not depend on where it is made, so a study may begin on one machine and end on many.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlx_peft.config.tuning import Resources
from mlx_peft.core import cores, system
from mlx_peft.core.errors import UserError
from mlx_peft.core.json_io import to_json
from mlx_peft.studies.processes import INTERRUPTED, USER_ERROR, Order, Relay, Reply, work

LOCAL = "local"
"""In the place of an address: a cluster of this machine alone, for as long as this process lives."""

ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
"""So a local cluster listens on the loopback interface alone, on Linux too, and tells nobody that it was begun."""

STORE = 100 * 2**20
"""Bytes of a local cluster's memory for objects: only orders and replies are there."""

PATIENCE = 0.2
"""Seconds between two looks of a task whether it is to stop."""


class OnRay:
    """An executor of tasks of a cluster, which decides how many are made at once."""

    room = None

    def __init__(self, command: Sequence[str], out: Path) -> None:
        """
        Args:
            command: of a worker; its interpreter is that of each host.
            out: the study's folder.
        """
        import ray

        self._ray, self._command, self._out = ray, tuple(command), out.absolute()
        self._mark = self._out / f".driver-{uuid.uuid4().hex}"
        """Is there as long as runs are to be made: a host that does not see it sees another folder, and where it
        vanishes, the runs at work stop."""
        self._stopping = False

    def submit(self, order: Order, resources: Resources, log: Path | None) -> Future[Reply]:
        if not self._mark.exists() and not self._stopping:
            for left in self._out.glob(".driver-*"):  # by drivers that were killed
                left.unlink(missing_ok=True)
            self._mark.touch()
        task = self._ray.remote(make).options(
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            memory=resources.memory * 1e9 or None,
            resources=dict(resources.custom),
            max_retries=0,  # the study takes a run up again, from where it is
        )
        done = task.remote(
            self._command, to_json(order, indent=None), log and str(log.absolute()), os.getcwd(), str(self._mark)
        )
        found: Future[Reply] = Future()

        def told(answer: Future[tuple[int, str, float]]) -> None:
            found.set_result(self._reply(answer))

        done.future().add_done_callback(told)
        return found

    def hand_on(self, number: int) -> None:
        self._stopping = True
        self._mark.unlink(missing_ok=True)

    def _reply(self, answer: Future[tuple[int, str, float]]) -> Reply:
        """What has become of a task: where its process, or its host, is gone, its run died."""
        try:
            status, text, seconds = answer.result()
        except self._ray.exceptions.RayTaskError as error:
            return Reply(USER_ERROR, json.dumps({"error": str(error.cause)}))
        except self._ray.exceptions.RayError as error:
            return Reply(-system.KILLED, str(error))
        if status == INTERRUPTED and not self._stopping:  # its host is taken away
            return Reply(-signal.SIGTERM, text, seconds)
        return Reply(status, text, seconds)


def make(command: Sequence[str], order: str, log: str | None, directory: str, mark: str) -> tuple[int, str, float]:
    """One run, in a process of the cluster, to its end: a reply's status, text and seconds.

    Raises UserError where this host does not see the study's folder.
    """
    if not os.path.exists(os.path.dirname(mark)):
        raise UserError(
            f"{socket.gethostname()} does not see {os.path.dirname(mark)}: a study's folder, its images and its "
            "weights lie where all hosts of the cluster see them at the same path"
        )
    relay, told = Relay(), False
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(
            work,
            (sys.executable, *command[1:]),
            json.loads(order),
            None if log is None else Path(log),
            relay,
            dict(os.environ),
            directory,
        )
        while wait([made], timeout=PATIENCE).not_done:
            if not told and not os.path.exists(mark):
                relay.hand_on(signal.SIGTERM)
                told = True
    reply = made.result()
    return reply.status, reply.text, reply.seconds


@contextmanager
def on_cluster(address: str, command: Sequence[str], out: Path, needed: Sequence[Resources] = ()) -> Iterator[OnRay]:
    """An executor on the cluster at an address, for as long as the block runs: after it no run goes on.

    Raises UserError where there is no such cluster, or none of its hosts has what a run needs.
    """
    with cluster(address):
        check_room(needed)
        executor = OnRay(command, out)
        try:
            yield executor
        finally:
            executor.hand_on(signal.SIGTERM)


@contextmanager
def cluster(address: str) -> Iterator[None]:
    """Connects to a cluster, or begins one of this machine, for as long as the block runs.

    Raises UserError where there is none at the address, or Ray is not installed.
    """
    if address == LOCAL:
        os.environ.update(ALONE)  # before Ray is loaded, which reads them once
    ray = installed()
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
    if address == LOCAL:
        options |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1", "num_cpus": cores.whole()}
        options |= {"object_store_memory": STORE}
    try:
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise UserError(f"there is no Ray cluster at {address}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def check_room(needed: Sequence[Resources]) -> None:
    """Raises UserError where no host of the cluster has what a run needs: it would wait for ever."""
    hosts = [host["Resources"] for host in installed().nodes() if host["Alive"]]
    for one in dict.fromkeys(map(_wanted, needed)):
        if not any(all(host.get(name, 0) >= amount for name, amount in one) for host in hosts):
            wanted = ", ".join(f"{amount:g} {name}" for name, amount in one)
            raise UserError(f"resources: no host of the cluster has {wanted}")


def _wanted(resources: Resources) -> tuple[tuple[str, float], ...]:
    """In Ray's words."""
    usual = {"CPU": resources.cpus, "GPU": resources.gpus, "memory": resources.memory * 1e9}
    return tuple((name, amount) for name, amount in {**usual, **resources.custom}.items() if amount)


def installed() -> Any:
    """The package. Raises UserError where it is not there."""
    try:
        import ray
    except ImportError as error:
        raise UserError("Ray is not installed; install it with: pip install 'mlx-peft[ray]'") from error
    return ray
