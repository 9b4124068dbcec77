"""The server as a process of its own: how it begins, and how it ends."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from banks import ARGS, SIZE, adapter, base_of
from serve.conftest import encoded
from serve.hostile import form, http, in_form

from convert.adapters.peft import write_adapter
from mlx_peft.config.methods import LoRA
from mlx_peft.config.schema import Model

PATIENCE = 300.0
"""Seconds after which a process is taken to hang, on a machine that does much else."""


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two, whose base is drawn where they are opened."""
    place, base = tmp_path_factory.mktemp("adapters"), base_of()
    model = Model(name="vit_tiny_patch16_224", weights="none", image_size=SIZE, args=ARGS)
    for seed in range(2):
        write_adapter(place / f"0{seed}-lora", replace(adapter(base, LoRA(rank=2), seed), model=model))
    return place


@contextmanager
def serving(*arguments: object, cwd: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that serves, and its port."""
    command = [sys.executable, "-m", "mlx_peft", "serve", *map(str, arguments), "--port", "0"]
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = next((line for line in process.stdout if line.startswith("serving")), "")
            found = re.search(r":(\d+)$", line.strip())
            assert found is not None, line
            yield process, int(found[1])
        finally:
            process.kill()


def status(port: int, request: bytes) -> int | None:
    """The status of an answer that came whole; None where the server was gone before it took the request."""
    try:
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as there:
            there.sendall(request)
            answer = b""
            while chunk := there.recv(65536):
                answer += chunk
    except (ConnectionRefusedError, ConnectionResetError, BrokenPipeError):
        return None
    if not answer:
        return None
    head, _, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head.lower())
    assert length is not None and len(body) == int(length[1])
    return int(answer[9:12])


def content(folder: Path) -> dict[str, str]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


ASK = in_form(encoded(0))
KIND = {"content-type": "multipart/form-data; boundary=edge"}
UNNAMED = http("POST", "/v1/classify", KIND, form([("images", encoded(0))]))


@pytest.mark.slow
def test_at_sigterm_it_answers_what_it_has_taken_in_and_ends_with_0(adapters: Path, tmp_path: Path) -> None:
    with serving(adapters, "--backend", "torch", cwd=tmp_path) as (process, port):
        found: list[int | None] = []
        going = True

        def ask() -> None:
            while going:
                found.append(status(port, ASK))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        while len(found) < 100:
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
        going = False
        for thread in threads:
            thread.join()
    assert found.count(200) >= 100 and {*found} <= {200, 503, None}


@pytest.mark.slow
def test_a_second_ctrl_c_ends_it_though_a_request_is_not_answered(adapters: Path, tmp_path: Path) -> None:
    with serving(adapters, "--backend", "torch", cwd=tmp_path) as (process, port):
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as there:
            there.sendall(ASK[:-1])  # for the last byte it would wait as long as a body may take
            process.send_signal(signal.SIGINT)
            while listens(port):
                assert process.poll() is None
            process.send_signal(signal.SIGINT)
            answer = there.recv(65536)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 500 ")  # and no 408
        process.wait(PATIENCE)


def listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), PATIENCE):
            return True
    except ConnectionRefusedError:
        return False


@pytest.mark.slow
def test_kill_leaves_nothing_half_written_and_the_next_one_serves(adapters: Path, tmp_path: Path) -> None:
    before = content(adapters)
    for _ in range(2):
        with serving(adapters, "--backend", "torch", cwd=tmp_path) as (process, port):
            assert status(port, ASK) == 200
            process.send_signal(signal.SIGKILL)
            assert process.wait(PATIENCE) == -signal.SIGKILL
    assert content(adapters) == before and os.listdir(tmp_path) == []


@pytest.mark.slow
def test_the_quickstart_is_trained_and_served_by_one_command(tmp_path: Path) -> None:
    for _ in range(2):  # the second time its run is there
        with serving("quickstart", cwd=tmp_path) as (process, port):
            assert status(port, UNNAMED) == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
