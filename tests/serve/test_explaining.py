"""An adapter of a bank is explained as the same adapter alone is, and the bank goes on as before."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from banks import ARGS, SAME, SIDES, SIZE, adapter, base_of, folder_of, network, pixels
from PIL import Image
from served_here import serving
from starlette.testclient import TestClient

from convert.adapters.peft import Adapter, read_adapter, write_adapter
from mlx_peft.artifacts.answering import ManyAdapters, OneModel
from mlx_peft.artifacts.explain import explained
from mlx_peft.artifacts.recipe import Recipe
from mlx_peft.client import Client, multipart
from mlx_peft.config.methods import VPT, Linear, LoRA, VeRA
from mlx_peft.config.schema import Model
from mlx_peft.config.tokens import ReducerConfig, ToMe
from mlx_peft.core.errors import UserError
from mlx_peft.protocols.loading import load_backend
from mlx_peft.serve.app import create_app
from mlx_peft.serve.engine import Engine
from mlx_peft.serve.explaining import Explainer, Seen, told
from mlx_peft.serve.served import ServedBank
from mlx_peft.serve.settings import Settings

METHODS = [
    LoRA(rank=2), LoRA(rank=2), LoRA(rank=2, targets=("q", "k"), dora=True), LoRA(rank=4, targets=("v",), init="pissa"),
    VPT(tokens=2), VeRA(rank=4),
]  # fmt: skip
DESCRIPTION = Model(name="vit_tiny_patch16_224", weights="none", image_size=SIZE, args=ARGS)


def asked_of(side: str, folder: Path, tokens: ReducerConfig | None = None) -> ManyAdapters:
    own = network(side) if tokens is None else SIDES[side].create_model(
        DESCRIPTION.name, weights="none", num_classes=5, image_size=SIZE, args=ARGS
    )  # fmt: skip
    own.reduce(tokens)
    recipe = Recipe(DESCRIPTION, Linear(), backend=side, tokens=tokens)  # type: ignore[arg-type]
    return ManyAdapters(SIDES[side].load_adapters(own, folder), own.base, recipe)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters of one form, and others. The first two have heads of two and three rows; all are of one base."""
    place = tmp_path_factory.mktemp("bank")
    folder_of(METHODS, place, base_of())
    return place


def alone(side: str, place: Path, image: np.ndarray) -> Seen:
    """The same adapter in a model of its own, which the backend builds from the base."""
    own, model = opened_alone(side, place)
    classes = own.classes or ()
    return Seen(None, explained(model, own.task, classes, "the image", image, None, 5), classes)


def opened_alone(side: str, place: Path) -> tuple[Adapter, Any]:
    own, base = read_adapter(place), base_of()
    headless = {name: tensor for name, tensor in base.tensors.items() if not name.startswith("head")}
    model = load_backend(side).build_model(replace(base, tensors=headless), own.num_classes, own.method)
    model.load_adapter(own.tensors)
    return own, model


def must_be_same(one: Seen, other: Seen) -> None:
    a, b = one.explained, other.explained
    assert [answer["class"] for answer in a.answers] == [answer["class"] for answer in b.answers] and a.of == b.of
    for own, their in zip(a.answers, b.answers, strict=True):
        assert own["probability"] == pytest.approx(their["probability"], abs=SAME)
    np.testing.assert_allclose(a.rollout, b.rollout, atol=SAME)
    np.testing.assert_allclose(a.weighted, b.weighted, atol=SAME)


@pytest.mark.parametrize("side", SIDES)
def test_every_adapter_is_explained_as_it_is_alone_in_any_order(side: str, folder: Path) -> None:
    asked, (image,) = asked_of(side, folder), pixels(1)
    before = asked.bank.logits(image[None], asked.bank.names[0])
    explainer = Explainer(asked)
    for name in (*asked.bank.names, *reversed(asked.bank.names)):
        must_be_same(explainer.look(image, name, 5), alone(side, folder / name, image))
    np.testing.assert_array_equal(asked.bank.logits(image[None], asked.bank.names[0]), before)


def test_one_that_was_replaced_is_explained_as_it_is_now(tmp_path: Path) -> None:
    folder_of([LoRA(rank=2)], tmp_path, base_of())
    folder_of([Linear(), LoRA(rank=2)], tmp_path / "other", base_of())
    asked, (image,) = asked_of("torch", tmp_path), pixels(1)
    (name,), other = asked.bank.names, tmp_path / "other" / "01-lora"
    explainer = Explainer(asked)
    explainer.look(image, name, 5)
    asked.bank.add(other, name)
    must_be_same(explainer.look(image, name, 5), alone("torch", other, image))


def test_of_one_model_that_model_is_explained(folder: Path) -> None:
    place, (image,) = folder / "01-lora", pixels(1)
    own, model = opened_alone("torch", place)
    one = OneModel(model, base_of(), Recipe(DESCRIPTION, own.method, backend="torch"), own.classes or (), own.task)
    must_be_same(Explainer(one).look(image, None, 5), alone("torch", place, image))


def test_nobody_explains_the_bare_base_or_an_adapter_that_is_not_there(folder: Path) -> None:
    explainer, (image,) = Explainer(asked_of("torch", folder)), pixels(1)
    with pytest.raises(UserError, match="name an adapter"):
        explainer.look(image, None, 5)
    with pytest.raises(UserError, match="has no adapter"):
        explainer.look(image, "nobody", 5)


def opened(text: str) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(base64.b64decode(text))))


def test_what_is_told_has_pictures_of_every_pixel(folder: Path) -> None:
    asked, (image,) = asked_of("torch", folder), pixels(1)
    seen = Explainer(asked).look(image, "01-lora", 2)
    found = told(seen)
    times = 224 // SIZE
    assert found["pictures"].keys() == {"image", "rollout", "favour"} and found["tokens"] == [17, 17]
    np.testing.assert_array_equal(opened(found["pictures"]["image"]), image.repeat(times, 0).repeat(times, 1))
    assert opened(found["pictures"]["rollout"]).shape == (224, 224, 3)
    assert found["adapter"] == "01-lora" and found["of"] == found["classes"][0]["label"] and len(found["classes"]) == 2
    classes = asked.bank["01-lora"].classes
    assert all(classes[one["index"]] == one["label"] for one in found["classes"])


def test_where_tokens_merge_the_last_block_s_are_told(tmp_path: Path) -> None:
    folder_of([LoRA(rank=2)], tmp_path, base_of())
    asked, (image,) = asked_of("torch", tmp_path, ToMe(r=4)), pixels(1)
    found = told(Explainer(asked).look(image, "00-lora", 5))
    assert found["tokens"] == [17, 13] and "tokens" in found["pictures"]


def test_over_http_one_image_is_explained_at_a_time_and_says_what_classify_says(tmp_path: Path) -> None:
    own = replace(adapter(base_of(), LoRA(rank=2), 0, classes=3), model=DESCRIPTION)
    write_adapter(tmp_path / "served" / "north", own)
    file = io.BytesIO()
    Image.fromarray(pixels(1)[0]).save(file, "PNG")
    with serving(tmp_path / "served") as address:
        client = Client(address)
        found = client.explain(file.getvalue(), "north", top=2)
        told_alone = client.classify([file.getvalue()], "north", top=2)[0]
        for images, name, status in (([file.getvalue()] * 2, "north", 422), ([file.getvalue()], "nobody", 404)):
            body, kind = multipart(images, name, {})
            with pytest.raises(HTTPError) as caught:
                urlopen(Request(f"{address}/v1/explain", body, {"Content-Type": kind}))
            assert caught.value.code == status and "error" in json.loads(caught.value.read())
    assert [one.label for one in found.classes] == [one.label for one in told_alone.classes]
    assert found.of == told_alone.best.label and found.pictures["rollout"].startswith(b"\x89PNG")


def test_one_that_is_let_go_meanwhile_is_not_there_and_nobody_is_told_of_others(folder: Path) -> None:
    asked = asked_of("torch", folder)
    engine = Engine(ServedBank(asked.bank, asked.base, folder, asked), Settings(max_batch=1))
    file, answers, gate = io.BytesIO(), [], threading.Event()
    Image.fromarray(pixels(1)[0]).save(file, "PNG")
    with TestClient(create_app(engine, engine.settings)) as http:

        def ask() -> None:
            answers.append(http.post("/v1/explain", files={"images": file.getvalue()}, data={"adapter": "00-lora"}))

        engine.start().result()
        engine.order(gate.wait, 20)
        engine.order(engine.served.unload, "00-lora")
        thread = threading.Thread(target=ask)
        thread.start()
        while not engine.waiting:
            time.sleep(0.001)
        gate.set()
        thread.join(20)
    assert answers[0].status_code == 404 and "01-lora" not in answers[0].text
