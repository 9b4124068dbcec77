"""The page of the configuration has every key of the schema, and nothing else."""

from __future__ import annotations

import re

import configuration

from mlx_peft.config.schema import Experiment

PAGE = configuration.page()
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def keys(section: str) -> list[str]:
    return re.findall(r"^\| `([\w]+)` \|", SECTIONS[section], re.MULTILINE)


def test_every_section_of_the_schema_has_its_keys() -> None:
    schema = Experiment.model_json_schema()
    tables = [{*keys(section)} for section in SECTIONS]
    assert {*keys("experiment")} == {*schema["properties"]}
    missing = [name for name, one in schema["$defs"].items() if {*one.get("properties", {})} not in tables]
    assert [name for name in missing if schema["$defs"][name].get("properties")] == []


def test_each_choice_has_a_table_of_its_own() -> None:
    assert {"method: lora", "method: linear", "train.optimizer: sgd", "tokens: tome"} <= {*SECTIONS}
    assert "rank" in keys("method: lora") and "rank" not in keys("method: linear")


def test_values_and_defaults_are_as_a_person_writes_them() -> None:
    model, train = SECTIONS["model"], SECTIONS["train"]
    assert re.search(r"^\| `name` \| `.*` \| must be given \|", model, re.MULTILINE)
    assert "| `image_size` | `whole number or null` | `null` |" in model
    assert "| `epochs` | `whole number` | `10` |" in train
    assert "| `precision` | `float32 | tf32 | bfloat16 | float16` | `float32` |" in train
    assert "PydanticUndefined" not in PAGE and "Annotated" not in PAGE and "ForwardRef" not in PAGE
