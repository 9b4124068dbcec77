"""The pictures and tables of an evaluation."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlx_peft.config.errors import UserError
from mlx_peft.engine.metrics import Evaluation, measure
from mlx_peft.engine.preview import Shown
from mlx_peft.report import evaluation, preview


def found(classes: int, absent: int | None = None) -> Evaluation:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, classes, 400)
    targets[targets == absent] = 0
    logits = (rng.normal(0, 1, (400, classes)) + 2 * np.eye(classes)[targets]).astype(np.float32)
    return measure(logits, np.log(np.exp(logits).sum(1)), logits.argmax(1), targets, auroc=True)


@pytest.mark.parametrize("classes", [3, 120])
def test_everything_is_written_and_reads_back(tmp_path: Path, classes: int) -> None:
    names = tuple(f"class {n}, étude" for n in range(classes))
    some = found(classes, absent=1)
    paths = evaluation.write(tmp_path / "new", "val", some.metrics, some.details(names), some.confusion)
    assert sorted(path.name for path in paths) == [
        "val-confusion.csv", "val-confusion.png", "val-reliability.png", "val.json"
    ]  # fmt: skip
    with open(tmp_path / "new" / "val-confusion.csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["true class", *names]
    assert [row[0] for row in rows] == list(names)
    assert np.array_equal(np.array([row[1:] for row in rows], int), some.confusion)
    document = json.loads((tmp_path / "new" / "val.json").read_text("utf-8"))
    assert document["metrics"] == some.metrics
    assert document["per_class"]["recall"][1] is None
    for path in paths:
        if path.suffix == ".png":
            pixels = np.asarray(Image.open(path).convert("RGB"))
            assert min(pixels.shape[:2]) > 400
            assert len(np.unique(pixels)) > 20


@pytest.mark.parametrize("name", [r"$\frac$", "$x", "a$b$", r"\$", "{}_^%#&", "\N{GREEK SMALL LETTER ALPHA}"])
def test_a_class_s_name_is_no_formula(tmp_path: Path, name: str) -> None:
    some = found(2)
    paths = evaluation.write(tmp_path, "val", some.metrics, some.details((name, "b")), some.confusion)
    assert all(path.exists() for path in paths)
    shown = [Shown(np.zeros((8, 8, 3), np.uint8), {name: 0.5, "b": 0.5}, 1.0)]
    preview.draw(shown, tmp_path / "preview.png")
    assert min(Image.open(tmp_path / "preview.png").size) > 100


def test_a_run_gets_the_pictures_of_its_test_split(tmp_path: Path) -> None:
    some = found(3)
    result = {"metrics": {"test": some.metrics}, "details": {"test": some.details(("a", "b", "c"))}}
    place = evaluation.write_result(tmp_path, json.loads(json.dumps(result)))
    assert place == tmp_path / "evaluation"
    assert (place / "test-confusion.png").exists()
    assert evaluation.write_result(tmp_path, {"metrics": {"test": None}, "details": {"test": None}}) is None
    assert evaluation.write_result(tmp_path, {"metrics": {}}) is None  # a result of before there were details


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    some = found(3)
    with pytest.raises(UserError, match="file"):
        evaluation.write(tmp_path / "file", "val", some.metrics, some.details(("a", "b", "c")), some.confusion)
