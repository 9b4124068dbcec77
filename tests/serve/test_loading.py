"""Adapters come and go while the server answers; nobody can do that but whoever has the token for it."""

from __future__ import annotations

import base64
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from banks import ARGS, SIDES, SIZE, adapter, base_of, network, rewritten
from serve.conftest import Running, Start, encoded, written
from serve.test_limits import Held, Later, reason, until

from convert.adapters.peft import read_adapter, write_adapter
from mlx_peft.config.methods import IA3
from mlx_peft.config.schema import Model

ADMIN = "admin-" + "a" * 20
HEAD = {"Authorization": f"Bearer {ADMIN}"}


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    """A folder that a test may change."""
    return Path(shutil.copytree(folder, tmp_path / "adapters"))


def loaded(served: Any, name: str) -> Any:
    """What PUT does, all at once."""
    assert [*served.load(served.read(name))] == []
    return served.get(name)


def label(server: Running, name: str) -> str:
    answer = server.classify([encoded(0)], adapter=name)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["results"][0]["classes"][0]["label"])


def test_without_its_token_nobody_loads_or_lets_go(start: Start, own: Path) -> None:
    server = start(place=own)
    assert "by nobody" in reason(server.http.put("/v1/models/00-lora", headers=HEAD), 403)
    reason(server.http.delete("/v1/models/00-lora", headers=HEAD), 403)
    guarded = start(place=own, admin_token=ADMIN)
    for headers in ({}, {"Authorization": "Bearer " + "x" * 26}):
        reason(guarded.http.put("/v1/models/00-lora", headers=headers), 401)
        reason(guarded.http.delete("/v1/models/00-lora", headers=headers), 401)
    assert label(guarded, "00-lora")


def test_one_that_was_let_go_is_gone_and_one_that_was_loaded_answers(
    start: Start, own: Path, side: str, tmp_path
) -> None:
    server = start(side, place=own, admin_token=ADMIN)
    before = server.classify([encoded(0)], adapter="00-lora").json()["results"]
    assert server.http.delete("/v1/models/00-lora", headers=HEAD).json() == {"name": "00-lora", "loaded": False}
    reason(server.classify([encoded(0)], adapter="00-lora"), 404)
    reason(server.http.delete("/v1/models/00-lora", headers=HEAD), 404)
    loaded = server.http.put("/v1/models/00-lora", headers=HEAD).json()
    assert (loaded["name"], loaded["loaded"]) == ("00-lora", True)
    assert server.classify([encoded(0)], adapter="00-lora").json()["results"] == before


def test_a_new_one_answers_as_the_offline_bank_that_has_it(start: Start, own: Path, tmp_path: Path) -> None:
    server = start(place=own, admin_token=ADMIN)
    shutil.copytree(own / "01-lora", own / "new")
    rewritten(own / "new", classes=("one", "two", "three"))
    assert server.http.put("/v1/models/new", headers=HEAD).status_code == 200
    bank = SIDES["torch"].load_adapters(network("torch"), own)
    assert label(server, "new") == bank.predict(written([encoded(0)], tmp_path / "files")[0], "new").name


def test_one_that_is_read_again_answers_with_its_new_classes(start: Start, own: Path) -> None:
    server = start(place=own, admin_token=ADMIN)
    count = read_adapter(own / "00-lora").num_classes
    rewritten(own / "00-lora", classes=tuple(f"new {at}" for at in range(count)))
    assert not label(server, "00-lora").startswith("new")
    assert server.http.put("/v1/models/00-lora", headers=HEAD).status_code == 200
    assert label(server, "00-lora").startswith("new")


def test_what_was_asked_of_one_that_is_let_go_meanwhile_is_404_and_harms_nobody(start: Start, own: Path) -> None:
    server = start(place=own, admin_token=ADMIN, wrap=Held, max_batch=1)
    served = server.engine.served
    with served.held():
        first = Later(server, adapter="01-lora")
        served.begun.wait(20)
        order = server.engine.order(served.unload, "00-lora")
        gone, other = Later(server, adapter="00-lora"), Later(server, adapter="01-lora")
    assert order.result() is None
    assert (first.status(), gone.status(), other.status()) == (200, 404, 200)


def test_what_was_asked_of_one_that_is_loaded_anew_meanwhile_gets_the_new_ones_answer(start: Start, own: Path) -> None:
    server = start(place=own, admin_token=ADMIN, wrap=Held, max_batch=1)
    served, count = server.engine.served, read_adapter(own / "00-lora").num_classes
    with served.held():
        first = Later(server, adapter="01-lora")
        served.begun.wait(20)
        rewritten(own / "00-lora", classes=tuple(f"new {at}" for at in range(count)))
        order = server.engine.order(loaded, served, "00-lora")
        asked = Later(server, adapter="00-lora")
    assert order.result().classes[0] == "new 0"
    assert (first.status(), asked.status()) == (200, 200)
    assert asked.answer.json()["results"][0]["classes"][0]["label"].startswith("new")


@pytest.mark.parametrize("begun", [False, True], ids=["before its first image", "between two images"])
def test_a_tensor_is_of_one_adapter_though_it_is_loaded_anew_meanwhile(start: Start, own: Path, begun: bool) -> None:
    server = start(place=own, admin_token=ADMIN, wrap=Held, max_batch=1)
    served, answers = server.engine.served, []
    files = [base64.b64encode(encoded(at)).decode() for at in range(2)]
    tensor = {"name": "images", "datatype": "BYTES", "shape": [2], "data": files}
    old, new = (read_adapter(own / name).num_classes for name in ("00-lora", "01-lora"))

    def ask() -> None:
        answers.append(server.http.post("/v2/models/00-lora/infer", json={"inputs": [tensor]}))

    asked = threading.Thread(target=ask)
    with served.held():
        if not begun:
            first = Later(server, adapter="01-lora")
        else:
            asked.start()
        served.begun.wait(20)
        shutil.rmtree(own / "00-lora")
        shutil.copytree(own / "01-lora", own / "00-lora")
        order = server.engine.order(loaded, served, "00-lora")
        if not begun:
            asked.start()
            until(lambda: server.engine.waiting == 3)
    asked.join(20)
    assert len(order.result().classes) == new != old
    if begun:
        assert answers[0].status_code == 503 and "loaded anew" in answers[0].json()["error"]
    else:
        assert first.status() == 200
        assert [len(output["data"]) for output in answers[0].json()["outputs"]] == [2 * new] * 2
        assert [output["shape"] for output in answers[0].json()["outputs"]] == [[2, new]] * 2


@pytest.mark.parametrize("name", ["none", "damaged", "other", "led-away", "large"])
def test_what_cannot_be_loaded_is_told_why_and_all_is_as_it_was(
    start: Start, own: Path, tmp_path: Path, name: str
) -> None:
    server = start(place=own, admin_token=ADMIN)
    if name == "damaged":
        shutil.copytree(own / "00-lora", own / name)
        (own / name / "adapter_model.safetensors").write_bytes(b"x" * 100)
    if name == "other":
        shutil.copytree(own / "00-lora", own / name)
        rewritten(own / name, base_sha256="0" * 64)
    if name == "led-away":
        shutil.copytree(own / "00-lora", tmp_path / "elsewhere")
        os.symlink(tmp_path / "elsewhere", own / name)
    if name == "large":
        server.engine.served._bank._passes.residents.budget = 10
        name = "00-lora"
    told = reason(server.http.put(f"/v1/models/{name}", headers=HEAD), 404 if name == "none" else 422)
    assert name in told and str(tmp_path) not in told
    if name != "00-lora":
        assert label(server, "00-lora")
        assert [model["name"] for model in server.http.get("/v1/models").json()["models"]] == list(server.names)


def test_its_files_are_read_while_the_device_computes(start: Start, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start(place=own, admin_token=ADMIN, wrap=Held)
    served, done = server.engine.served, threading.Event()
    read = served._served.read

    def noted(name: str) -> Any:
        found = read(name)
        done.set()
        return found

    monkeypatch.setattr(served._served, "read", noted)
    with served.held():
        first = Later(server, adapter="01-lora")
        served.begun.wait(20)
        put = threading.Thread(target=server.http.put, args=("/v1/models/00-lora",), kwargs={"headers": HEAD})
        put.start()
        assert done.wait(20)
    put.join(20)
    assert first.status() == 200 and label(server, "00-lora")


def test_what_is_read_has_no_part_in_its_file(start: Start, own: Path) -> None:
    server = start(place=own)
    before, coming = label(server, "00-lora"), server.engine.served.read("00-lora")
    weights = own / "00-lora" / "adapter_model.safetensors"
    with weights.open("r+b") as file:
        file.write(b"x" * weights.stat().st_size)
    steps = server.engine.served.load(coming)
    assert server.engine.order(next, steps, None).result() is None and label(server, "00-lora") == before


def of_a_new_kind(own: Path) -> None:
    """The adapter 00-lora is of a method that the server has not met."""
    base = base_of()
    model = Model(name="vit_tiny_patch16_224", weights="none", image_size=SIZE, args=ARGS)
    write_adapter(own / "00-lora", replace(adapter(base, IA3(), 1), model=model))


def test_what_is_new_to_the_device_in_one_is_computed_step_by_step_before_anybody_asks_it(
    start: Start, own: Path
) -> None:
    server = start(place=own, admin_token=ADMIN)
    served = server.engine.served
    of_a_new_kind(own)
    steps = served.load(served.read("00-lora"))
    for _ in served._sizes:
        assert server.engine.order(next, steps, None).result() is None and served.get("00-lora").method == "lora"
    server.engine.order(next, steps, None).result()
    assert served.get("00-lora").method == "ia3"
    assert server.http.put("/v1/models/00-lora", headers=HEAD).json()["method"] == "ia3"
    assert label(server, "00-lora")


@pytest.mark.parametrize(("what", "after"), [("tried", 200), ("features", 404)])
def test_one_that_the_device_cannot_compute_is_not_served(
    start: Start, own: Path, monkeypatch: pytest.MonkeyPatch, what: str, after: int
) -> None:
    """Where it fails alone, the one before it still is."""
    server = start(place=own, admin_token=ADMIN)
    of_a_new_kind(own)

    def fails(*arguments: Any) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as broken:
        broken.setattr(server.engine.served._bank, what, fails)
        reason(server.http.put("/v1/models/00-lora", headers=HEAD), 500)
    assert server.classify([encoded(0)], adapter="00-lora").status_code == after
    assert server.http.put("/v1/models/00-lora", headers=HEAD).status_code == 200
    assert label(server, "00-lora")


@pytest.mark.parametrize("name", [".hidden", "x" * 201, "a\\b", "%2e%2e", "a%2fb", "..%2fserved"])
def test_a_name_that_is_a_path_loads_nothing(start: Start, own: Path, name: str) -> None:
    server = start(place=own, admin_token=ADMIN)
    for ask in (server.http.put, server.http.delete):
        assert ask(f"/v1/models/{name}", headers=HEAD).status_code in (404, 405, 422)


def test_it_serves_within_a_budget_that_has_room_for_one(start: Start, own: Path, tmp_path: Path) -> None:
    server = start(place=own)
    bank = server.engine.served._bank
    bank._passes.residents.budget = max(bank._passes.residents.get(name).nbytes for name in bank.names)
    answers = server.classify([encoded(0)] * 5, adapter=list(server.names)).json()["results"]
    assert [one["adapter"] for one in answers] == list(server.names)
    assert sum(model["loaded"] for model in server.http.get("/v1/models").json()["models"]) == 1
    files = written([encoded(0)] * 5, tmp_path / "files")
    wanted = [one.name for one in server.bank.predict(files, list(server.names))]
    assert [one["classes"][0]["label"] for one in answers] == wanted
