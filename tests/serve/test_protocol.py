"""The Open Inference Protocol: each adapter as a model; pixels and files in tensors."""

from __future__ import annotations

import base64
import threading
from typing import Any

import numpy as np
import pytest
from banks import SIZE
from serve.conftest import Running, Start, encoded, written

from mlx_peft.serve import answering, protocol

SAME = 1e-5
"""See test_answers."""


def infer(server: Any, name: str, tensor: dict[str, Any], **more: Any) -> Any:
    return server.http.post(f"/v2/models/{name}/infer", json={"inputs": [{"name": "images", **tensor}], **more})


def pixels(count: int = 2, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize("nested", [True, False], ids=["nested", "flat"])
def test_pixels_get_the_offline_banks_logits(start: Start, side: str, nested: bool) -> None:
    server, images = start(side), pixels()
    data = images.tolist() if nested else images.ravel().tolist()
    tensor = {"datatype": "UINT8", "shape": list(images.shape), "data": data}
    answer = infer(server, server.names[1], tensor, id="mine").json()
    logits, probabilities = answer["outputs"]
    assert (answer["model_name"], answer["id"]) == (server.names[1], "mine")
    wanted = np.stack(server.bank.logits(images, server.names[1]))
    assert (logits["name"], logits["datatype"], logits["shape"]) == ("logits", "FP32", list(wanted.shape))
    np.testing.assert_allclose(np.reshape(logits["data"], logits["shape"]), wanted, atol=SAME)
    task = server.bank[server.names[1]].adapter.task
    own = np.stack([task.probabilities(row.astype(np.float64)) for row in wanted])
    np.testing.assert_allclose(np.reshape(probabilities["data"], own.shape), own, atol=SAME)


def test_a_long_answer_is_written_in_a_thread_and_is_the_same(plain: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    server, threads, made = plain, list[int](), protocol.inferred

    def noted(*arguments: Any) -> Any:
        threads.append(threading.get_ident())
        return made(*arguments)

    monkeypatch.setattr(protocol, "inferred", noted)
    tensor = {"datatype": "UINT8", "shape": [2, SIZE, SIZE, 3], "data": pixels().ravel().tolist()}
    loop = server.http.portal.call(threading.get_ident)
    short = infer(server, server.names[0], tensor).json()
    monkeypatch.setattr(answering, "MANY", 0)
    long = infer(server, server.names[0], tensor).json()
    assert threads[0] == loop != threads[1] and long == short


def test_files_are_read_as_elsewhere(plain: Running, tmp_path) -> None:
    server, file = plain, encoded(3)
    tensor = {"datatype": "BYTES", "shape": [1], "data": [base64.b64encode(file).decode()]}
    answer = infer(server, server.names[0], tensor, outputs=[{"name": "logits"}]).json()
    wanted = server.bank.predict(written([file], tmp_path / "files")[0], server.names[0])
    (logits,) = answer["outputs"]
    np.testing.assert_allclose(logits["data"], wanted.logits, atol=SAME)


def test_what_goes_in_and_comes_out_is_described(plain: Running) -> None:
    server = plain
    found = server.http.get(f"/v2/models/{server.names[0]}").json()
    assert found["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, SIZE, SIZE, 3]}]
    rows = len(server.bank[server.names[0]].classes)
    assert [(one["name"], one["shape"]) for one in found["outputs"]] == [
        ("logits", [-1, rows]),
        ("probabilities", [-1, rows]),
    ]
    assert server.http.get("/v2").json()["name"] == "mlx-peft"
    assert server.http.get(f"/v2/models/{server.names[0]}/ready").json() == {"name": server.names[0], "ready": True}
    assert server.http.get("/v2/models/no-such").status_code == 404


GOOD = {"name": "images", "datatype": "UINT8", "shape": [1, 2, 2, 3], "data": [0] * 12}


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, 200),
        ({"name": "pixels"}, 422),
        ({"datatype": "FP32"}, 422),
        ({"shape": [1, 2, 2, 4]}, 422),
        ({"shape": [1, 2, 2]}, 422),
        ({"shape": [1, 2, 2, -3]}, 422),
        ({"shape": [True, 2, 2, 3]}, 422),
        ({"shape": "x"}, 422),
        ({"shape": [0, 2, 2, 3], "data": []}, 422),
        ({"shape": [1, 0, 2, 3], "data": []}, 422),
        ({"shape": [1, 100_000, 100_000, 3]}, 422),
        ({"shape": [1, 1, 200, 3], "data": [0] * 600}, 422),
        ({"shape": [1000, 2, 2, 3]}, 422),
        ({"data": [0] * 11}, 422),
        ({"data": [256] * 12}, 422),
        ({"data": [-1] * 12}, 422),
        ({"data": [0.5] * 12}, 422),
        ({"data": ["x"] * 12}, 422),
        ({"data": "x"}, 422),
        ({"data": [[[[0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0]]]]}, 422),
        ({"more": 1}, 422),
        ({"datatype": "BYTES", "shape": [1], "data": ["?"]}, 422),
        ({"datatype": "BYTES", "shape": [2], "data": ["AAAA"]}, 422),
    ],
)
def test_tensors_that_are_no_images_are_told_why(plain: Running, changes: dict[str, Any], status: int) -> None:
    server = plain
    answer = server.http.post(f"/v2/models/{server.names[0]}/infer", json={"inputs": [GOOD | changes]})
    assert answer.status_code == status, answer.text
    assert status == 200 or isinstance(answer.json()["error"], str)


@pytest.mark.parametrize(
    "body", [{}, [], {"inputs": []}, {"inputs": [GOOD, GOOD]}, {"inputs": [GOOD], "outputs": [{"name": "x"}]},
             {"inputs": [GOOD], "outputs": 1}, {"inputs": [GOOD], "id": 1}, {"inputs": [GOOD], "x": 1}],
)  # fmt: skip
def test_requests_that_are_none_are_422(plain: Running, body: Any) -> None:
    server = plain
    assert server.http.post(f"/v2/models/{server.names[0]}/infer", json=body).status_code == 422
