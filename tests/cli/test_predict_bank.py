"""``predict`` over a bank of adapters: a table says which is asked about each image, and answers keep its order."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from banks import ARGS, SAME, SIZE, adapter, base_of, network
from PIL import Image

import torch_ref
from convert.adapters.peft import Adapter, write_adapter
from mlx_peft.artifacts import answering
from mlx_peft.config.methods import IA3, VPT, LoRA
from mlx_peft.config.schema import Model

ADAPTERS = {"birds": (LoRA(rank=2), 3, False), "cars": (IA3(), 4, False), "cells": (VPT(tokens=2), 2, True)}
CLOSE = 1e-5
"""Of probabilities: batches of another size sum in another order."""


def own(name: str, **args: Any) -> Adapter:
    """An adapter that says on which model it stands: one whose weights are drawn."""
    method, classes, several = ADAPTERS[name]
    found = adapter(base_of(**args), method, len(name), classes, several)
    return replace(found, model=Model(name="vit_tiny_patch16_224", weights="none", image_size=SIZE, args=ARGS | args))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with three adapters of one base in ``bank``, and six images of several sizes."""
    folder = tmp_path_factory.mktemp("place")
    for name in ADAPTERS:
        write_adapter(folder / "bank" / name, own(name))
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (30 + 5 * number, 40, 3), np.uint8)
        (folder / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
    return folder


ROWS = ["cars", "birds", "cells", "cars", "cells", "birds"]


@pytest.fixture
def asked(place: Path, command: Any) -> Any:
    """``asked(...)`` runs the command over the bank, in a folder with a table of the images."""
    table(place, "t.csv", list(enumerate(ROWS)))
    return lambda *words: command("predict", place / "bank", *words, obj="torch")


def table(place: Path, file: str, rows: list[tuple[Any, str]]) -> None:
    lines = [f"{place / 'images' / f'{image}.png'},{name}" for image, name in rows]
    Path(file).write_text("\n".join(["image,adapter", *lines]))


def alone(place: Path) -> list[Any]:
    bank = torch_ref.load_adapters(network("torch"), place / "bank")
    return [bank.predict(place / "images" / f"{number}.png", name) for number, name in enumerate(ROWS)]


def test_each_image_is_answered_by_its_adapter_in_the_table_s_order(asked, place, monkeypatch) -> None:
    monkeypatch.setattr(answering.ManyAdapters, "batch_size", 2)
    monkeypatch.setattr(answering, "TOGETHER", 2)  # four of six, then two
    found = [
        json.loads(line) for line in asked("--adapters", "t.csv", "--format", "jsonl", "--top", 9).stdout.splitlines()
    ]
    assert [(Path(one["image"]).stem, one["adapter"]) for one in found] == [
        (str(n), name) for n, name in enumerate(ROWS)
    ]
    for one, expected in zip(found, alone(place), strict=True):
        told = {guess["class"]: guess["probability"] for guess in one["predictions"]}
        assert told == pytest.approx(dict(expected.top(9)), abs=CLOSE)


def test_a_table_has_a_column_of_adapters_and_csv_a_row_for_each_class(asked) -> None:
    done = asked("--adapters", "t.csv")
    assert done.exit_code == 0, done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines()] == ROWS
    rows = list(csv.DictReader(io.StringIO(asked("--adapters", "t.csv", "--format", "csv", "--top", 2).stdout)))
    assert [*rows[0]] == ["image", "adapter", "rank", "class", "probability", "error"]
    assert [(row["adapter"], row["rank"]) for row in rows] == [(name, rank) for name in ROWS for rank in "12"]


def test_without_a_name_it_says_which_adapters_there_are(asked, place) -> None:
    done = asked(place / "images")
    assert done.exit_code == 2
    assert "choose one by its name: birds, cars, cells (--adapter NAME, --adapters CSV)" in done.stderr


def test_paths_are_relative_to_the_table_and_what_cannot_be_read_is_named(asked, place) -> None:
    (place / "images" / "broken.png").write_bytes(b"no image")
    (place / "images" / "t.csv").write_text("file;adapter\nbroken.png;cars\n0.png;cars\n")
    done = asked("--adapters", place / "images" / "t.csv", "--format", "csv")
    (place / "images" / "broken.png").unlink()
    first, second = csv.DictReader(io.StringIO(done.stdout))
    assert done.exit_code == 1 and first["error"] in done.stderr and first["class"] == ""
    assert second["image"] == str(place / "images" / "0.png") and second["class"]
    assert "read with ';' between its cells" in done.stderr


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(0, "carz")], "no adapter 'carz'; it has birds, cars, cells; did you mean 'cars'?"),
        ([(0, "cars"), (1, "carz")], "no adapter 'carz'"),
        ([(0, "cars"), (1, "-")], "a row names no adapter"),
        ([(0, "../bank/cars")], "no adapter '../bank/cars'"),
    ],
)
def test_a_wrong_name_is_refused_before_any_answer(asked, place, rows, message) -> None:
    table(place, "wrong.csv", rows)
    done = asked("--adapters", "wrong.csv", "--format", "jsonl")
    assert (done.exit_code, done.stdout) == (2, "") and message in done.stderr


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_features_are_each_adapter_s_and_the_bare_model_s(asked, place, kind) -> None:
    names = ["cars", "", "birds", "-", "cells"]
    table(place, "f.csv", [(number, name) for number, name in enumerate(names)])
    done = asked("--adapters", "f.csv", "--features", f"f.{kind}", "--json")
    assert done.exit_code == 0, done.stderr
    width = base_of().architecture.embed_dim
    assert json.loads(done.stdout) == {
        "file": f"f.{kind}", "images": 5, "dim": width, "dtype": "float32", "unreadable": [],
    }  # fmt: skip
    images, adapters, features = opened(Path(f"f.{kind}"))
    assert images == [str(place / "images" / f"{number}.png") for number in range(5)]
    assert adapters == ["cars", "", "birds", "", "cells"]
    bank = torch_ref.load_adapters(network("torch"), place / "bank")
    for image, name, row in zip(images, adapters, features, strict=True):
        expected = bank.predict(image, name or None)
        if name:
            head = own(name).tensors
            row, expected = head["head.weight"] @ row + head["head.bias"], expected.logits
        np.testing.assert_allclose(row, expected, rtol=0, atol=SAME)


def opened(file: Path) -> tuple[list[str], list[str], np.ndarray]:
    """Images, adapters and features of a file, as others open it."""
    if file.suffix == ".npz":
        with np.load(file) as found:  # without pickle
            assert found["features"].dtype == np.float32
            return found["images"].tolist(), found["adapters"].tolist(), found["features"]
    from pyarrow import parquet

    table = parquet.read_table(file)
    assert str(table.schema.field("features").type).startswith("fixed_size_list<element: float>")
    rows = np.array(table["features"].to_pylist(), np.float32)
    return table["image"].to_pylist(), [name or "" for name in table["adapter"].to_pylist()], rows


@pytest.mark.parametrize("name", ADAPTERS)
def test_features_of_one_adapter_in_its_model_are_those_of_the_bank(asked, place, name) -> None:
    """Two ways: the adapter put into a network, and its terms beside one."""
    table(place, "one.csv", [(number, name) for number in range(6)])
    assert asked("--adapters", "one.csv", "--features", "bank.npz").exit_code == 0
    assert asked(place / "images", "--adapter", name, "--features", "alone.npz").exit_code == 0
    for one, other in zip(opened(Path("bank.npz")), opened(Path("alone.npz")), strict=True):
        np.testing.assert_allclose(one, other, atol=SAME, rtol=0) if isinstance(one, np.ndarray) else None
        assert isinstance(one, np.ndarray) or one == other


def test_a_run_is_no_bank(asked, place, command) -> None:
    done = command("predict", place / "bank" / "cars", "--adapters", "t.csv", obj="torch")
    assert done.exit_code == 2 and "is one run or adapter, not a folder of several" in done.stderr


def test_an_adapter_of_another_base_is_refused_by_name(asked, place, command, tmp_path) -> None:
    write_adapter(tmp_path / "mixed" / "birds", own("birds"))
    write_adapter(tmp_path / "mixed" / "cars", own("cars", depth=1))
    table(place, "b.csv", [(0, "birds")])
    done = command("predict", tmp_path / "mixed", "--adapters", "b.csv", obj="torch")
    assert done.exit_code == 0 and "left out: " in done.stderr and "cars" in done.stderr
    table(place, "c.csv", [(0, "birds"), (1, "cars")])
    done = command("predict", tmp_path / "mixed", "--adapters", "c.csv", obj="torch")
    assert done.exit_code == 2 and "the adapter cars is refused" in done.stderr
