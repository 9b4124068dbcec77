"""What is answered over HTTP is what the offline bank answers, from a form as from JSON, in either backend."""

from __future__ import annotations

import base64
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serve.conftest import Running, Start, encoded, written
from serve.test_limits import Held

from mlx_peft.serve import answering

SAME = 1e-5
"""The same sums in batches of another size: a few roundings of float32 (6e-8) a layer. Logits are about 1."""


def offline(bank: Any, files: list[bytes], names: list[str], folder: Path) -> list[list[tuple[str, float]]]:
    """The likeliest three classes of each image."""
    answers = bank.predict(written(files, folder), names)
    return [answer.top(3) for answer in answers]


def told(answer: Any) -> list[list[tuple[str, float]]]:
    assert answer.status_code == 200, answer.text
    return [[(one["label"], one["probability"]) for one in each["classes"]] for each in answer.json()["results"]]


def must_be_same(found: list[list[tuple[str, float]]], wanted: list[list[tuple[str, float]]]) -> None:
    assert [[label for label, _ in each] for each in found] == [[label for label, _ in each] for each in wanted]
    for own, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose([p for _, p in own], [p for _, p in other], atol=SAME)


def test_a_form_that_mixes_adapters_gets_what_the_offline_bank_says(start: Start, side, pictures, tmp_path) -> None:
    server = start(side)
    answer = server.classify(pictures, adapter=list(server.names), top_k="3")
    must_be_same(told(answer), offline(server.bank, pictures, list(server.names), tmp_path / "files"))
    assert [one["adapter"] for one in answer.json()["results"]] == list(server.names)


def test_json_says_the_same_as_a_form(plain: Running, pictures) -> None:
    server, pictures = plain, pictures[:4]
    first, second, *_ = server.names
    images = [{"data": base64.b64encode(file).decode()} for file in pictures]
    images[1]["adapter"] = second
    in_json = server.http.post("/v1/classify", json={"images": images, "adapter": first, "top_k": 3})
    in_form = server.classify(pictures, adapter=[first, second, first, first], top_k="3")
    assert in_json.json()["results"] == in_form.json()["results"]


def test_features_are_the_offline_banks_and_without_an_adapter_the_bare_bases(
    start: Start, side, pictures, tmp_path
) -> None:
    server = start(side)
    bare = server.http.post("/v1/embed", files=[("images", pictures[0])]).json()["results"][0]
    own = server.http.post("/v1/embed", files=[("images", pictures[0])], data={"adapter": server.names[0]}).json()
    file = written(pictures[:1], tmp_path / "files")[0]
    np.testing.assert_allclose(bare["embedding"], server.bank.predict(file, [None]), atol=SAME)
    assert bare["adapter"] is None and own["results"][0]["adapter"] == server.names[0]
    assert not np.allclose(own["results"][0]["embedding"], bare["embedding"], atol=SAME)


def test_many_at_once_each_get_their_own_answer(start: Start, tmp_path) -> None:
    """More than fit a batch, from several threads, of all adapters: batches mix them."""
    server, count = start(max_batch=4), 24
    files = [encoded(number) for number in range(count)]
    names = [server.names[number % len(server.names)] for number in range(count)]
    found: list[Any] = [None] * count

    def ask(number: int) -> None:
        found[number] = told(server.classify([files[number]], adapter=names[number], top_k="3"))[0]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    must_be_same(found, offline(server.bank, files, names, tmp_path / "files"))


def test_classes_and_features_are_one_batch(start: Start, side: str) -> None:
    server, pixels = start(side, wrap=Held), np.random.default_rng(5).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    engine = server.engine
    served, name = engine.served, server.names[0]
    with served.held():
        first = engine.submit(pixels, [None, None], headed=False)
        served.begun.wait(20)
        asked = [engine.submit(pixels, [served.get(name)] * 2, headed) for headed in (True, False)]
    classes, features = (one.result().rows for one in asked)
    assert served.batches == [2, 4] and len(first.result().rows) == 2
    np.testing.assert_allclose(classes, server.bank.logits(pixels, name), atol=SAME)
    np.testing.assert_allclose(features, server.bank.features(pixels, name), atol=SAME)


def test_an_answer_says_where_its_time_went(plain: Running, pictures) -> None:
    server = plain
    times = server.classify(pictures[:4], adapter=server.names[0]).json()["milliseconds"]
    assert set(times) == {"decode", "queue", "device", "total"}
    assert times["decode"] + times["device"] <= times["total"]


def test_models_are_listed_with_what_they_are(plain: Running) -> None:
    server = plain
    models = server.http.get("/v1/models").json()["models"]
    assert [model["name"] for model in models] == list(server.names)
    first = models[0]
    assert first["classes"] == list(server.bank[first["name"]].classes)
    assert (first["method"], first["loaded"], first["metrics"]) == ("lora", True, {})
    assert first["bytes"] > 0


@pytest.mark.parametrize("route", ["classify", "embed"])
def test_a_long_answer_is_written_in_a_thread_and_is_the_same(
    start: Start, monkeypatch: pytest.MonkeyPatch, route: str
) -> None:
    server, threads = start(), list[int]()
    name = {"classify": "classes_of", "embed": "embedding_of"}[route]
    made = getattr(answering, name)

    def noted(*arguments: Any) -> Any:
        threads.append(threading.get_ident())
        return made(*arguments)

    monkeypatch.setattr(answering, name, noted)
    files, fields = [("images", encoded(0)), ("images", encoded(1))], {"adapter": server.names[0]}
    loop = server.http.portal.call(threading.get_ident)
    short = server.http.post(f"/v1/{route}", files=files, data=fields).json()
    assert {*threads} == {loop}
    monkeypatch.setattr(answering, "MANY", 0)
    threads.clear()
    long = server.http.post(f"/v1/{route}", files=files, data=fields).json()
    assert len(threads) == 2 and loop not in threads
    assert long["results"] == short["results"] and long["milliseconds"].keys() == short["milliseconds"].keys()
