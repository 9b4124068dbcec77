"""What the load test's stranger sends is refused, each with a sentence, and the server goes on."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
from banks import ARGS, SIZE, adapter, base_of
from load.hostile import Hostile, requests
from served_here import serving

from convert.adapters.peft import write_adapter
from mlx_peft.client import Client
from mlx_peft.config.methods import LoRA
from mlx_peft.config.schema import Model


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("adapters")
    description = Model(name="vit_tiny_patch16_224", weights="none", image_size=SIZE, args=ARGS)
    write_adapter(folder / "north", replace(adapter(base_of(), LoRA(rank=2), 0), model=description))
    with serving(folder, admin_token="of-thirty-two-letters-or-a-little-more") as found:
        yield found


@pytest.mark.parametrize("one", requests("north"), ids=lambda one: one.what)
def test_it_is_refused_with_a_sentence_and_the_server_goes_on(address: str, one: Hostile) -> None:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    connection.request(one.verb, one.path, one.body, {"Content-Type": one.kind})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    assert 400 <= answer.status < 500, content
    error = json.loads(content)["error"]
    reason = error if isinstance(error, str) else error["reason"]
    assert 10 < len(reason) < 1000 and "Traceback" not in reason
    assert Client(address).ready()
