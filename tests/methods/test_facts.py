"""What is said of the methods, in ``ls methods`` and on the page for users, is so."""

import json
from pathlib import Path
from typing import get_args

import pytest
from mlx.utils import tree_flatten
from typer.testing import CliRunner

from convert.adapters.formats import FORMATS
from mlx_peft.backend import methods
from mlx_peft.backend.methods import quantized
from mlx_peft.backend.models.vit import VisionTransformer
from mlx_peft.cli.app import app
from mlx_peft.config import files, recipes
from mlx_peft.config.methods import Method
from mlx_peft.config.quantization import Quantization
from mlx_peft.vit.parameters import is_head
from mlx_peft.vit.registry import find

CONFIGS = get_args(get_args(Method)[0])
PAGE = Path(__file__).parents[2] / "docs" / "methods.md"


def rows() -> list[dict[str, str]]:
    """The page's first table."""
    first, *_ = PAGE.read_text().split("\n## ")
    lines = [line.strip("|").split("|") for line in first.splitlines() if line.startswith("|")]
    heading, _, *body = [[cell.strip() for cell in line] for line in lines]
    return [dict(zip(heading, line, strict=True)) for line in body]


def method_of(row: dict[str, str]):
    return files.load(recipes.find(row["recipe"].strip("`"))).method


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_peft_reads_what_is_said_to_be_read_by_it(config):
    assert (FORMATS[config].from_peft is not None) == config.in_peft


def test_ls_says_it_in_words_and_in_json():
    def ls(*options: str) -> str:
        return CliRunner().invoke(app, ["ls", "methods", *options]).stdout

    listed = {entry["name"]: entry for entry in json.loads(ls("--json"))}
    assert list(listed) == [config.model_fields["name"].default for config in CONFIGS]
    heading, *lines = ls().splitlines()
    assert heading.split("  ")[0] == "name" and heading.endswith("description")
    for config, line in zip(CONFIGS, lines, strict=True):
        entry = listed[config.model_fields["name"].default]
        facts = (config.unmerged is None, config.in_peft, config.unmixed is None, config.uncombined is None)
        assert tuple(entry[fact] for fact in ("merges", "in_peft", "mixes", "combines")) == facts
        assert line.split()[:5] == [entry["name"], *("yes" if fact else "no" for fact in facts)]
        assert line.endswith(entry["description"])


def test_the_page_has_every_method_and_every_recipe_of_one():
    table = rows()
    assert {type(method_of(row)) for row in table} == set(CONFIGS)
    named = [row["recipe"].strip("`") for row in table]
    shipped = {name: files.load(recipes.find(name)) for name in recipes.names() if name.startswith("dinov2-small-")}
    in_few_bits = {n for n, e in shipped.items() if e.qat or (e.quantize and not e.method.over_codes)}
    assert sorted(named) == sorted(shipped.keys() - in_few_bits)


@pytest.mark.parametrize(
    ("column", "model"), [("parameters", "vit_base_patch16_224"), ("on DINOv2-S", "vit_small_patch14_dinov2")]
)
def test_the_counts_on_the_page_are_those_that_ls_prints(column, model):
    done = CliRunner().invoke(app, ["ls", "recipes", "dinov2-small-*-folder", "--on", model, "--json"])
    counts = {entry["name"]: entry["parameters"] for entry in json.loads(done.stdout)}
    table = {row["recipe"].strip("`"): int(row[column].replace(",", "")) for row in rows()}
    assert table == {name: counts[name] for name in table}


def test_only_what_recipes_train_is_counted():
    done = CliRunner().invoke(app, ["ls", "methods", "--on", "vit_base_patch16_224"])
    assert done.exit_code == 2
    assert "--on: only what recipes train is counted so, and not methods" in done.stderr


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["method"])
def test_a_row_of_the_page_is_what_the_code_says(row):
    method = method_of(row)
    assert [row[fact] for fact in ("merges", "PEFT reads it", "batch may mix it")] == [
        "yes" if fact else "no" for fact in (method.merges, method.in_peft, method.unmixed is None)
    ]
    if "init" in type(method).model_fields:  # the same shapes without singular values, which take seconds
        method = method.model_copy(update={"init": "kaiming"})
    model = VisionTransformer(find("vit_base_patch16_224").architecture, 10)
    if method.over_codes:
        quantized.quantize(model, Quantization(bits=4))
    methods.apply(model, method, 0)
    trained = {name: array.size for name, array in tree_flatten(model.trainable_parameters()) if not is_head(name)}
    assert int(row["parameters"].replace(",", "")) == sum(trained.values())
