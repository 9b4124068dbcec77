"""Copies of the server on Ray Serve, as docs/serving/on_ray.py starts them."""

from __future__ import annotations

import http.client
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from banks import ARGS, SAME, SIZE, adapter, base_of, network
from PIL import Image

from convert.adapters.peft import write_adapter
from mlx_peft.client import Answer, Client
from mlx_peft.config.methods import LoRA
from mlx_peft.config.schema import Model

SCRIPT = Path(__file__).parents[2] / "docs" / "serving" / "on_ray.py"
LONGEST = 240
"""Seconds until Ray and both copies are there, on a busy machine."""


@pytest.mark.slow
def test_two_copies_answer_as_the_bank_does_and_end_when_they_are_asked_to(tmp_path: Path) -> None:
    folder = tmp_path / "adapters"
    description = Model(name="vit_tiny_patch16_224", weights="none", image_size=SIZE, args=ARGS)
    for seed, name in enumerate(("north", "south")):
        write_adapter(folder / name, replace(adapter(base_of(), LoRA(rank=2 + seed), seed), model=description))
    Image.new("RGB", (40, 40), (200, 30, 90)).save(tmp_path / "red.png")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = [sys.executable, str(SCRIPT), str(folder), "--copies", "2", "--cpus", "0.5", "--port", port]
    with (tmp_path / "said").open("wb") as said, subprocess.Popen(words, stdout=said, stderr=said) as started:
        try:
            client = Client(f"http://127.0.0.1:{port}", timeout=60)
            end = time.monotonic() + LONGEST
            while not client.ready():
                assert started.poll() is None and time.monotonic() < end, (tmp_path / "said").read_text()
                time.sleep(0.5)
            names = ["north", "south"] * 8
            with ThreadPoolExecutor(8) as pool:
                found = list(pool.map(lambda name: client.classify([tmp_path / "red.png"], name)[0], names))
            assert status_for(port, "another.example") == 421
            started.send_signal(signal.SIGTERM)
            assert started.wait(60) == 0, (tmp_path / "said").read_text()
        finally:
            started.kill()
    must_be_the_bank_s(found, names, folder, tmp_path / "red.png")


def status_for(port: str, name: str) -> int:
    """Of a request that calls the server so."""
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
    connection.request("GET", "/v1/models", headers={"Host": name})
    status = connection.getresponse().status
    connection.close()
    return status


def must_be_the_bank_s(found: list[Answer], names: list[str], folder: Path, image: Path) -> None:
    import torch_ref

    bank = torch_ref.load_adapters(network("torch"), folder)
    for answer, name in zip(found, names, strict=True):
        label, probability = bank.predict(image, name).top(1)[0]
        assert (answer.adapter, answer.best.label) == (name, label)
        assert answer.best.probability == pytest.approx(probability, abs=SAME)
