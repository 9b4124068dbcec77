"""Commands of the documentation that are processes of their own: servers, what launchers start, what a shell runs."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from urllib.request import urlopen

import pytest
from documentation.snippets import ROOT, SNIPPETS, Snippet
from documentation.tables import LAUNCHED, SERVERS
from documentation.test_serving import PAGE

PATIENCE = 300
"""Seconds after which a process is taken to hang, on a machine that does much else."""
ENVIRONMENT = {
    "PYTHONPATH": os.environ.get("PYTHONPATH", str(ROOT)),
    "PATH": os.pathsep.join((sysconfig.get_path("scripts"), os.environ["PATH"])),
}


def words(line: str) -> list[str]:
    """A command, of this interpreter where it is one of ours, with what the tables have for it."""
    ours = {"mlx-peft": [sys.executable, "-m", "mlx_peft"], "torchrun": [sys.executable, "-m", "torch.distributed.run"]}
    program, *rest = shlex.split(f"{line} {(SERVERS | LAUNCHED)[line]}")
    return [*ours.get(program, [program]), *rest]


@pytest.mark.slow
@pytest.mark.parametrize("line", SERVERS)
def test_a_server_has_its_page_and_ends_when_it_is_told_to(line: str, world: Path) -> None:
    with subprocess.Popen(words(line), env=os.environ | ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            told = next((line for line in process.stdout if line.startswith("serving")), "")
            address = re.search(r"http://\S+", told)
            assert address is not None, told
            with urlopen(address[0], timeout=PATIENCE) as answer:
                assert b"<html" in answer.read()
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("line", LAUNCHED)
def test_a_launcher_starts_a_run_of_two_processes(line: str, world: Path) -> None:
    done = subprocess.run(words(line), env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)
    (result,) = (world / "launched").glob("result.json")
    assert done.returncode == 0 and result.is_file(), f"{done.stdout}\n{done.stderr}"
    assert json.loads((world / "launched" / "env.json").read_text())["processes"] == "2"


TIMED = [one for one in SNIPPETS if one.language == "sh" and one.page != PAGE]
"""What a shell runs, but for requests to a server: programs that are timed."""


@pytest.mark.slow
@pytest.mark.parametrize("snippet", TIMED, ids=str)
def test_what_is_timed_can_be(snippet: Snippet, tmp_path: Path) -> None:
    lines = snippet.text.splitlines()
    for line in lines:
        done = subprocess.run(
            ["bash", "-euc", line], env=os.environ | ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0 and "best of" in done.stdout, f"{line}\n{done.stderr}"
    assert len(lines) == 2
