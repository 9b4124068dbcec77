"""The client asks a real server: it reads what the bank says, and what it is refused is the server's own sentence."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from banks import ARGS, SAME, SIZE, adapter, base_of, network
from PIL import Image
from served_here import serving

import torch_ref
from convert.adapters.peft import write_adapter
from mlx_peft.client import Client, ServerError
from mlx_peft.config.methods import IA3, LoRA
from mlx_peft.config.schema import Model
from mlx_peft.serve.tokens import Grant, Tokens

ADMIN, NORTH = "the-token-of-an-administrator", "the-token-of-those-in-the-north"
METHODS = {"north": LoRA(rank=2), "south": IA3()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("adapters")
    description = Model(name="vit_tiny_patch16_224", weights="none", image_size=SIZE, args=ARGS)
    for seed, (name, method) in enumerate(METHODS.items()):
        write_adapter(place / name, replace(adapter(base_of(), method, seed), model=description))
    return place


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with serving(folder, admin_token=ADMIN, tokens=Tokens({NORTH: Grant(frozenset({"north"}))})) as found:
        yield found


@pytest.fixture(scope="module")
def image() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_classes_and_features_are_the_bank_s(address: str, folder: Path, image: bytes, tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(image)
    client, bank = Client(address, token=ADMIN), torch_ref.load_adapters(network("torch"), folder)
    answers = client.classify([tmp_path / "image.png", image], ["north", "south"], top=2)
    for answer, name in zip(answers, METHODS, strict=True):
        own = bank.predict(tmp_path / "image.png", name).top(2)
        assert [one.label for one in answer.classes] == [label for label, _ in own] and answer.adapter == name
        assert [one.probability for one in answer.classes] == pytest.approx([share for _, share in own], abs=SAME)
    (bare,) = client.embed([image])
    np.testing.assert_allclose(bare.vector, bank.predict(tmp_path / "image.png", [None]), atol=SAME)
    assert set(answers.milliseconds) == {"decode", "queue", "device", "total"}


def test_an_adapter_is_let_go_and_read_again(address: str, image: bytes) -> None:
    client = Client(address, token=ADMIN)
    client.unload("south")
    assert [model.name for model in client.models()] == ["north"]
    with pytest.raises(ServerError, match="south") as caught:
        client.classify([image], "south")
    assert caught.value.status == 404
    client.load("south")
    assert [(model.name, model.method) for model in client.models()] == [("north", "lora"), ("south", "ia3")]


def test_a_token_asks_what_it_may_and_is_told_so(address: str, image: bytes) -> None:
    with pytest.raises(ServerError, match="token"):
        Client(address).models()
    client = Client(address, token=NORTH)
    assert client.classify([image])[0].adapter == "north", "of the one that it may ask, which need not be named"
    for refused in (lambda: client.classify([image], "south"), lambda: client.load("north")):
        with pytest.raises(ServerError):
            refused()
