"""The pictures and tables of an evaluation."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from halves import daily
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from mlx_peft.core.errors import UserError
from mlx_peft.report import drawing, evaluation, preview
from mlx_peft.tasks.metrics import Columns, Evaluation
from mlx_peft.tasks.single_label_metrics import measure
from mlx_peft.training.preview import Shown


def found(classes: int, absent: int | None = None) -> Evaluation:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, classes, 400)
    targets[targets == absent] = 0
    logits = (rng.normal(0, 1, (400, classes)) + 2 * np.eye(classes)[targets]).astype(np.float32)
    normalizers = np.log(np.exp(logits).sum(1))
    scores = Columns(np.float32)
    scores.add(logits)
    return measure(normalizers, np.exp(logits.max(1) - normalizers), logits.argmax(1), targets, classes, scores)


@pytest.mark.usefixtures("fine_pictures")
@pytest.mark.parametrize("classes", daily([3, 120], 120))
def test_everything_is_written_and_reads_back(tmp_path: Path, classes: int) -> None:
    names = tuple(f"class {n}, étude" for n in range(classes))
    some = found(classes, absent=1)
    paths = evaluation.write(tmp_path / "new", "val", some.metrics, some.details(names), some.confusion)
    assert sorted(path.name for path in paths) == [
        "val-confusion.csv", "val-confusion.pdf", "val-confusion.png", "val-reliability.pdf", "val-reliability.png",
        "val.json",
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
        if path.suffix == ".pdf":
            assert path.read_bytes().startswith(b"%PDF-")
        if path.suffix == ".png":
            pixels = np.asarray(Image.open(path).convert("RGB"))
            assert min(pixels.shape[:2]) > 400
            assert len(np.unique(pixels)) > 20


FORMULAS = (r"$\frac$", "$x", "a$b$", r"\$", "{}_^%#&", "\N{GREEK SMALL LETTER ALPHA}")


def test_a_class_s_name_is_no_formula(tmp_path: Path) -> None:
    some = found(len(FORMULAS))
    paths = evaluation.write(tmp_path, "val", some.metrics, some.details(FORMULAS), some.confusion)
    assert all(path.exists() for path in paths)
    shown = [Shown(np.zeros((8, 8, 3), np.uint8), {name: 0.5, "b": 0.5}, 1.0) for name in FORMULAS]
    preview.draw(shown, tmp_path / "preview.png")
    assert min(Image.open(tmp_path / "preview.png").size) > 100


LONG = "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)"


def blue(path: Path) -> int:
    """Pixels across a heat map: those of the row that has most of a colour."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    return int((pixels[..., 2] - pixels[..., 0] > 3).sum(axis=1).max())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("classes", daily([2, 8, 40], 2, 8))
def test_long_names_leave_the_confusion_matrix_its_room(tmp_path: Path, classes: int) -> None:
    confusion = np.ones((classes, classes), int).tolist()
    sizes = {}
    for kind, names in (("long", [f"{n} {LONG}" for n in range(classes)]), ("short", list(map(str, range(classes))))):
        path = tmp_path / f"{kind}.png"
        path.write_bytes(drawing.png(evaluation.draw_confusion(confusion, names), 40))
        sizes[kind] = blue(path)
    assert sizes["long"] > 0.8 * sizes["short"]


@pytest.mark.parametrize("name", [LONG, LONG.upper(), "W" * 60, "i" * 200])
def test_text_is_cut_to_the_width_that_there_is(name: str) -> None:
    cut = drawing.fitted(name, 1.5, 8)
    assert cut.endswith("…")
    assert name.startswith(cut[:-1])
    assert drawing.width(cut, 8) <= 1.5 < drawing.width(f"{name[: len(cut)]}…", 8)
    assert drawing.fitted("cat", 1.5, 8) == "cat"
    figure = Figure(dpi=100)
    drawn = figure.text(0, 0, cut, fontsize=8).get_window_extent(FigureCanvasAgg(figure).get_renderer()).width / 100
    assert drawn == pytest.approx(drawing.width(cut, 8), rel=0.05), "whole pixels are what Agg counts in"


@pytest.mark.usefixtures("fine_pictures")
@pytest.mark.filterwarnings("error")
def test_letters_that_the_font_lacks_are_drawn_without_a_word(tmp_path: Path) -> None:
    names = ["\N{CJK UNIFIED IDEOGRAPH-732B}" * 30, "\N{CJK UNIFIED IDEOGRAPH-72AC}"]
    assert drawing.pictures(evaluation.draw_confusion([[1, 2], [3, 4]], names), 200).keys() == {".png", ".pdf"}
    preview.draw([Shown(np.zeros((8, 8, 3), np.uint8), dict.fromkeys(names, 0.5), 1.0)], tmp_path / "preview.png")


@pytest.mark.usefixtures("fine_pictures")
@pytest.mark.parametrize("side", daily([16, 64, 384], 16))
def test_captions_stay_above_their_own_image(tmp_path: Path, side: int) -> None:
    shown = [Shown(np.zeros((side, side, 3), np.uint8), {LONG.upper(): 0.7, LONG: 0.3}, 0.5)] * 8
    preview.draw(shown, tmp_path / "preview.png")
    pixels = np.asarray(Image.open(tmp_path / "preview.png").convert("L"))
    pitch = pixels.shape[1] / 4
    for column in range(5):
        edge = round(column * pitch)
        assert (pixels[:, max(0, edge - 2) : edge + 2] == 255).all(), "white between the columns, and at the edges"


def test_a_bin_of_one_image_is_seen_beside_one_of_thousands() -> None:
    reliability = {"count": [1, 0, 9000], "confidence": [0.2, None, 0.9], "accuracy": [1.0, None, 0.9]}
    _, below = evaluation.draw_reliability(reliability, 0.1).axes
    assert below.get_yscale() == "log"
    lowest, highest = below.get_ylim()
    assert 0 < lowest < 1 and highest > 9000


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


TAMPERED = {
    "reliability.count": [{}, 1, 2],
    "reliability.accuracy": ["x"],
    "reliability.confidence": None,
    "reliability": {"count": [1.0]},
    "confusion": [[1, 2], [3]],
    "classes": ["only one"],
    "per_class.support": [1],
    "per_class": 3,
}


@pytest.mark.parametrize("place", TAMPERED)
def test_what_is_drawn_of_a_result_is_what_a_run_writes(tmp_path: Path, place: str) -> None:
    evaluated = found(3)
    details = json.loads(json.dumps(evaluated.details(("a", "b", "c"))))
    node = details
    *above, last = place.split(".")
    for key in above:
        node = node[key]
    node[last] = TAMPERED[place]
    result = {"metrics": {"test": evaluated.metrics}, "details": {"test": details}}
    with pytest.raises(UserError, match=r"result\.json: details\.test is not what a run writes"):
        evaluation.write_result(tmp_path, result)
    assert not list(tmp_path.iterdir())
