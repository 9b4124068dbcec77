"""One whole model is served as a folder of adapters is, but for what comes and goes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from banks import base_of, network
from serve.conftest import encoded
from serve.test_limits import reason
from starlette.testclient import TestClient

from mlx_peft.protocols.loading import load_library
from mlx_peft.serve.app import create_app
from mlx_peft.serve.engine import Engine
from mlx_peft.serve.known import Known
from mlx_peft.serve.served import ServedModel
from mlx_peft.serve.settings import Settings
from mlx_peft.tasks.registry import classification

SAME = 1e-5
"""Of a probability, of a feature: sums in another order."""
CLASSES = tuple(f"class {at}" for at in range(5))
HEAD = {"Authorization": "Bearer " + "a" * 20}


def served(classes: tuple[str, ...] = CLASSES) -> ServedModel:
    base = base_of()
    program = load_library("torch").framework.program(network("torch"), "float32")
    return ServedModel(
        program, base, Known("whole", base.name, None, classes, classification(False), base.preprocessing)
    )


@pytest.fixture
def http() -> Iterator[TestClient]:
    engine = Engine(served(), Settings(max_batch=4, admin_token="a" * 20))
    with TestClient(create_app(engine, engine.settings)) as http:
        engine.start().result()
        yield http


def test_a_batch_is_filled_up_and_each_row_gets_what_it_asks_for() -> None:
    model, images = served(), np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    assert model.warm([1, 2, 4]) == ()
    asked: list[int] = []
    program = model._program
    model._program = lambda batch: asked.append(len(batch)) or program(batch)
    found = model.answer(images, [model.get("whole")] * 3, [True, False, True])
    assert asked == [4]
    for at, (row, headed) in enumerate(zip(found, [True, False, True], strict=True)):
        logits, features = program(images[at : at + 1])
        np.testing.assert_allclose(row, (logits if headed else features)[0], rtol=0, atol=SAME)


def test_it_is_asked_by_no_name_or_by_its_own(http: TestClient) -> None:
    files = [("images", encoded(0))]
    own, none = (http.post("/v1/classify", files=files, data=data).json() for data in ({"adapter": "whole"}, {}))
    assert own["results"] == none["results"] and {one["label"] for one in own["results"][0]["classes"]} == {*CLASSES}
    found = http.post("/v1/embed", files=files).json()["results"][0]
    assert found["adapter"] == "whole" and len(found["embedding"]) == base_of().architecture.feature_dim
    (model,) = http.get("/v1/models").json()["models"]
    assert (model["name"], model["method"], model["loaded"]) == ("whole", None, True)
    reason(http.post("/v1/classify", files=files, data={"adapter": "other"}), 404)


def test_nothing_is_loaded_and_nothing_let_go(http: TestClient) -> None:
    for ask in (http.put, http.delete):
        assert "one model is served" in reason(ask("/v1/models/whole", headers=HEAD), 409)
    assert http.post("/v1/classify", files=[("images", encoded(0))]).status_code == 200


def test_one_without_classes_answers_with_features_alone() -> None:
    engine = Engine(served(()), Settings(max_batch=1))
    with TestClient(create_app(engine, engine.settings)) as http:
        engine.start().result()
        files = [("images", encoded(0))]
        assert "has no classes" in reason(http.post("/v1/classify", files=files), 422)
        assert http.post("/v1/embed", files=files).status_code == 200
