"""Whatever fails, the next request is answered: the device, an adapter, the end of the server."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from banks import SIDES, network
from serve.conftest import Start, encoded
from serve.test_limits import Held, Later, reason, until
from starlette.testclient import TestClient

from mlx_peft.core.errors import UserError
from mlx_peft.serve.app import create_app
from mlx_peft.serve.engine import Engine
from mlx_peft.serve.problems import Problem
from mlx_peft.serve.served import ServedBank
from mlx_peft.serve.settings import Settings


class Failing:
    """What is served, on a device that fails for one adapter, and for all while it is broken."""

    def __init__(self, served: Any) -> None:
        self._served, self.broken, self.spoilt = served, False, ""
        self.nan = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._served, name)

    def answer(self, images: Any, rows: Any, headed: Any) -> Any:
        if self.broken or any(row is not None and row.name == self.spoilt for row in rows):
            raise RuntimeError("out of memory, at /secret/place")
        found = self._served.answer(images, rows, headed)
        return [row * np.nan for row in found] if self.nan else found


def counted(server: Any, name: str) -> float:
    lines = server.http.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def test_a_device_error_is_500_and_counted_and_the_next_request_works(start: Start) -> None:
    server = start(wrap=Failing)
    served, name = server.engine.served, server.names[0]
    served.broken = True
    assert "secret" not in reason(server.classify([encoded(0)], adapter=name), 500)
    served.broken = False
    assert server.classify([encoded(0)], adapter=name).status_code == 200
    assert counted(server, "mlx_peft_device_errors_total") == 1
    assert counted(server, 'mlx_peft_errors_total{route="classify",status="500"}') == 1
    assert server.engine.waiting == 0


def test_an_error_of_one_request_fails_no_other_of_its_batch(start: Start) -> None:
    server = start(wrap=lambda served: Held(Failing(served)), max_batch=8)
    held = server.engine.served
    held._served.spoilt = server.names[2]
    with held.held():
        first = Later(server)
        held.begun.wait(20)
        taken = [Later(server, adapter=name) for name in server.names]
        until(lambda: server.engine.waiting == 6)
    assert first.status() == 200
    assert [one.status() for one in taken] == [200, 200, 500, 200, 200]


def test_images_that_cannot_be_put_together_end_no_thread(start: Start) -> None:
    server = start(wrap=Held)
    engine = server.engine
    with engine.served.held():
        first = engine.submit(np.zeros((1, 32, 32, 3), np.uint8), [None], headed=False)
        engine.served.begun.wait(20)
        odd = engine.submit(np.zeros((1, 32, 32, 4), np.uint8), [None], headed=False)
        good = engine.submit(np.zeros((1, 32, 32, 3), np.uint8), [None], headed=False)
    assert len(first.result(20).rows) == len(good.result(20).rows) == 1
    with pytest.raises(Problem, match="could not answer"):
        odd.result(20)


def test_logits_that_are_not_finite_are_no_answer(start: Start) -> None:
    server = start(wrap=Failing)
    server.engine.served.nan = True
    assert "not finite" in reason(server.classify([encoded(0)], adapter=server.names[0]), 500)
    assert "not finite" in reason(server.http.post("/v1/embed", files=[("images", encoded(0))]), 500)


def test_until_it_is_warm_it_takes_nothing_in(start: Start) -> None:
    bank = start().bank
    engine = Engine(ServedBank(bank, network("torch").base, None), Settings())
    with TestClient(create_app(engine, Settings())) as http:
        assert http.get("/v2/health/live").status_code == 200
        assert http.get("/v2/health/ready").status_code == 503
        files = [("images", encoded(0))]
        answer = http.post("/v1/classify", files=files, data={"adapter": bank.names[0]})
        assert "not warm" in reason(answer, 503) and answer.headers["retry-after"]
        engine.start().result()
        assert http.get("/v2/health/ready").status_code == 200
        assert http.post("/v1/classify", files=files, data={"adapter": bank.names[0]}).status_code == 200


def test_asked_to_end_while_it_warms_up_it_does_no_more_than_it_has_begun(start: Start) -> None:
    bank = start().bank
    engine = Engine(ServedBank(bank, network("torch").base, Path()), Settings(max_batch=32))
    asked: list[int] = []

    class Counted:
        def __getattr__(self, name: str) -> Any:
            return getattr(bank, name)

        def __getitem__(self, name: str) -> Any:
            return bank[name]

        def features(self, images: Any, *arguments: Any) -> Any:
            asked.append(len(images))
            if len(asked) == 2:
                with pytest.raises(Problem, match="not warm yet"):  # a load, which nobody would answer if this failed
                    engine.order(print)
                engine.drain()
            return bank.features(images, *arguments)

    engine.served._bank = Counted()  # type: ignore[attr-defined]
    with pytest.raises(CancelledError):
        engine.start().result(20)
    engine.close()
    assert asked == [1, 1] and not engine.ready


def test_a_lone_adapter_that_cannot_be_read_is_the_reason_why_nothing_is_served(folder: Path, tmp_path: Path) -> None:
    own = shutil.copytree(folder / "01-lora", tmp_path / "one" / "01-lora")
    bank = SIDES["torch"].load_adapters(network("torch"), own.parent)
    (own / "adapter_model.safetensors").write_bytes(b"x")
    engine = Engine(ServedBank(bank, network("torch").base, None), Settings())
    with pytest.raises(UserError, match="01-lora"):
        engine.start().result(20)


def test_draining_it_answers_what_it_has_taken_in_and_refuses_what_is_new(start: Start) -> None:
    server = start(wrap=Held, max_batch=1)
    served = server.engine.served
    with served.held():
        taken = [Later(server) for _ in range(3)]
        until(lambda: server.engine.waiting == 3)
        server.engine.drain()
        assert server.http.get("/v2/health/ready").status_code == 503
        assert server.http.get("/v2/health/live").status_code == 200
        assert "shutting down" in reason(server.classify([encoded(0)], adapter=server.names[0]), 503)
        closing = threading.Thread(target=server.engine.close)
        closing.start()
    assert [one.status() for one in taken] == [200] * 3
    closing.join(20)
    assert not closing.is_alive()
    with pytest.raises(Problem, match="shutting down"):
        server.engine.order(print)


def test_a_device_that_hangs_does_not_keep_the_server_from_its_end(start: Start) -> None:
    server = start(wrap=Held, drain=0.05)
    served = server.engine.served
    with served.held():
        hanging = Later(server)
        served.begun.wait(20)
        server.engine.close()
        assert server.engine.waiting == 1
    assert hanging.status() == 200


def test_an_adapter_that_has_become_unreadable_is_left_out_with_a_note(start: Start, folder, tmp_path) -> None:
    own = shutil.copytree(folder, tmp_path / "adapters")
    bank = SIDES["torch"].load_adapters(network("torch"), own)
    (own / "01-lora" / "adapter_model.safetensors").write_bytes(b"x")
    engine = Engine(ServedBank(bank, network("torch").base, own), Settings())
    engine.start().result()
    assert [note.partition(":")[0] for note in engine.notes] == ["left out"]
    assert "01-lora" not in engine.served.names and engine.ready
    engine.close()


def test_what_keeps_it_from_becoming_warm_is_told(start: Start) -> None:
    class Broken(Failing):
        def warm(self, *_: Any) -> Any:
            raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        start(wrap=Broken)
