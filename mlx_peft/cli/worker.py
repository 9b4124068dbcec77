"""The process of one run of a sweep: an order on standard input, a reply on standard output."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from mlx_peft.cli.output import said_beside
from mlx_peft.cli.process import prepared
from mlx_peft.core import threads
from mlx_peft.core.errors import UserError

if TYPE_CHECKING:
    from mlx_peft.training.run import RunFolder

PATIENCE = 600.0
"""Seconds to wait for the process of an earlier sweep that was killed: its own notices, and stops after a step."""


def work() -> None:
    """The process of one run: see ``mlx_peft.studies.processes``."""
    replies, sys.stdout = sys.stdout, sys.stderr  # what else is printed is no reply
    with prepared():
        obey(replies)


def obey(replies: TextIO) -> None:
    """Makes the run of the order on standard input."""
    try:
        from mlx_peft.cli.progress import watch
        from mlx_peft.config.schema import Experiment
        from mlx_peft.config.step import Step
        from mlx_peft.report import ranks
        from mlx_peft.studies.derive import derive
        from mlx_peft.studies.processes import INTERRUPTED, USER_ERROR
        from mlx_peft.training.run import RunFolder
        from mlx_peft.training.stop import Interrupted
        from mlx_peft.training.tracking import show_end
        from mlx_peft.training.train import train
        from mlx_peft.training.work import threads_worth

        order = json.loads(sys.stdin.readline())
        threading.Thread(target=stop_with_parent, daemon=True).start()
        out = Path(order["out"])
        wait_for(RunFolder(out))
        with said_beside(out / "config.yaml"), watch() as progress:
            try:
                if "step" in order:
                    derive(Path(order["of"]), Step.model_validate(order["step"]), out)
                else:
                    experiment = Experiment.model_validate(order["experiment"])
                    threads.at_most(threads_worth(experiment))
                    beside = None if order["beside"] is None else Path(order["beside"])
                    result = train(experiment, out, resume=True, beside=beside, progress=progress, test=order["test"])
                    figure = ranks.write(out)
                    show_end(experiment, out, result, [figure] if figure else [])
            except UserError as error:
                json.dump({"error": _answer(error)}, replies)
                sys.exit(USER_ERROR)
            except Interrupted:
                sys.exit(INTERRUPTED)
    except KeyboardInterrupt:
        sys.exit(130)


def wait_for(folder: RunFolder) -> None:
    """Waits until no other process has the folder, as long as one that stops may take to write its checkpoint."""
    until = time.monotonic() + PATIENCE
    while folder.in_use() and time.monotonic() < until:
        time.sleep(0.05)


def _answer(error: UserError) -> str:
    """The error's text, and the command that helps, of the program whose name is this process's argument."""
    if error.command is None:
        return str(error)
    from typer.main import get_command

    from mlx_peft.cli.app import app
    from mlx_peft.cli.mistakes import spelled

    return f"{error}\n  {spelled(error.command, get_command(app), *sys.argv[1:])}"


def stop_with_parent() -> None:
    """Waits for the end of the input: the sweep's process is gone. Then this one stops, as on Ctrl-C."""
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    work()
