"""The OpenAPI document and the server say the same: schemathesis asks what it allows, and what it does not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from serve.conftest import LIMITS, Running

from mlx_peft.serve.asked import FORM
from mlx_peft.serve.described import IMAGE, PIXEL

HEADERS = {"Authorization": f"Bearer {LIMITS.admin_token}"}


@pytest.mark.slow
def test_what_is_asked_is_answered_as_the_document_says(port: int) -> None:
    """Without the plugin of schemathesis, which this pytest is too new for.

    A form's files are drawn as bytes of any kind, since no schema says what an image is: that they are refused is
    right. In JSON images are drawn by their format.
    """
    import schemathesis  # as long in loading as all the rest here, and this test alone needs it
    from schemathesis import GenerationMode
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    schemathesis.openapi.format(IMAGE, st.just(PIXEL))
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")
    wrong: dict[str, str] = {}
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))
            @given(case=operation.as_strategy(generation_mode=mode))
            def answered(case: Any) -> None:
                of_files = case.media_type == FORM
                case.call_and_validate(headers=HEADERS, excluded_checks=[positive_data_acceptance] * of_files)

            try:
                answered()
            except Unsatisfiable:  # nothing of the kind: a request without a body or parameters is always right
                pass
            except BaseException as error:
                wrong[f"{operation.label}, {mode.value}"] = str(error)[:3000]
    assert wrong == {}


def test_the_document_can_be_read_and_describes_every_route(plain: Running) -> None:
    document = plain.http.get("/openapi.json").json()
    paths = {route.path for route in plain.http.app.routes if getattr(route, "include_in_schema", False)}
    assert document["paths"].keys() == paths and len(paths) >= 10
    for path, ways in document["paths"].items():
        for way in ways.values():
            assert "200" in way["responses"] and way["summary"], path


@pytest.mark.parametrize("path", ["/v1/embed", "/v2/models/00-lora/infer"])
def test_its_examples_can_be_sent_as_they_are(plain: Running, path: str) -> None:
    document = plain.http.get("/openapi.json").json()
    described = document["paths"][path.replace("00-lora", "{name}")]["post"]["requestBody"]["content"]
    answer = plain.http.post(path, json=described["application/json"]["example"])
    assert answer.status_code == 200, answer.text
