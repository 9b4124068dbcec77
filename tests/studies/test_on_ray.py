"""A local Ray cluster is this machine's own; what no host has is said before anything waits for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hanging import HUNG

SCRIPT = """
import pathlib, psutil, sys
from mlx_peft.config.tuning import Resources
from mlx_peft.core.errors import UserError
from mlx_peft.studies.on_ray import check_room, on_cluster

out = pathlib.Path(sys.argv[1])
out.mkdir()
worker = out.parent / "worker.py"
worker.write_text("import os, sys; print(sys.stdin.readline().strip(), os.getcwd())")
with on_cluster("local", ("python", str(worker)), out) as executor:
    me = psutil.Process()
    listening = {
        connection.laddr.ip
        for process in [me, *me.children(recursive=True)]
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    check_room([Resources(cpus=1)])
    try:
        check_room([Resources(cpus=1, custom={"mlx": 1})])
    except UserError as error:
        print(error)
    print(sorted(listening))
    print(executor.submit({"order": 1}, Resources(), None).result())
print(list(out.iterdir()))
"""


@pytest.mark.slow  # a cluster takes ten seconds to begin
def test_a_local_cluster_listens_on_loopback_alone_and_makes_what_it_is_told(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=HUNG,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    refused, listening, reply, left = done.stdout.splitlines()
    assert refused == "resources: no host of the cluster has 1 CPU, 1 mlx"
    assert listening != "[]"
    assert set(eval(listening)) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}  # the last is the first, over IPv6
    assert f'{{"order": 1}} {tmp_path}' in reply and "status=0" in reply
    assert left == "[]", done.stderr
