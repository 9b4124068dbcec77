"""``data preview`` draws the very pixels that a run trains on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from mlx_peft.cli.app import Commands
from mlx_peft.cli.data import preview as data_preview
from mlx_peft.config.schema import Experiment
from mlx_peft.data import open_dataset, train_batches
from mlx_peft.report.preview import caption
from mlx_peft.training.preview import Shown, preview

app = typer.Typer(cls=Commands)
app.callback()(lambda: None)
app.command()(data_preview.preview)


def experiment(**data: object) -> Experiment:
    return Experiment.model_validate({
        "model": {
            "name": "vit_tiny_patch16_224",
            "weights": "timm",
            "image_size": 24,
            "args": {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3},
        },
        "method": {"name": "linear"},
        "data": {"name": "digits", "batch_size": 8, **data},
    })  # fmt: skip


def test_what_is_shown_is_what_is_trained_on_at_the_models_size() -> None:
    config = experiment(augment={"crop": "padded", "flip": True, "mixup": 1.0}, class_weights="balanced")
    shown = preview(config, 11, epoch=2)
    assert len(shown) == 11
    train = open_dataset(config.data).train
    batches = list(train_batches(train, config.data, None, 24, seed=0, epoch=2, num_classes=10))  # type: ignore[arg-type]
    for number, image in enumerate(shown):
        batch, row = batches[number // 8], number % 8
        expected = Image.fromarray(batch.images[row]).resize((24, 24), Image.Resampling.BICUBIC)
        assert np.array_equal(image.pixels, np.asarray(expected))
        target = batch.targets[row]
        assert image.weight == pytest.approx(target.sum())
        assert image.classes == pytest.approx({str(n): target[n] / target.sum() for n in np.flatnonzero(target)})


def test_without_mixing_an_image_has_one_class() -> None:
    assert all(list(image.classes.values()) == [1.0] and image.weight == 1 for image in preview(experiment(), 5))


def test_captions() -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)
    assert caption(Shown(pixels, {"cat": 1.0}, 1.0)) == "cat"
    assert caption(Shown(pixels, {"cat": 0.7, "d" * 30: 0.3}, 0.5)) == f"0.70 cat\n0.30 {'d' * 30}\nweight 0.50"
    hostile = {"a\n\x1b[m": 0.5, r"a\n\x1b[m": 0.5}
    assert caption(Shown(pixels, hostile, 1.0)).split("\n") == [r"0.50 a\n\x1b[m"] * 2


@pytest.mark.usefixtures("fine_pictures")
@pytest.mark.parametrize("count", [1, 9])
def test_the_command_draws_a_sheet(tmp_path: Path, count: int) -> None:
    out = tmp_path / "sheet.png"
    arguments = ["preview", "quickstart", "data.augment.mixup=0.8", "--out", str(out), "--count", str(count)]
    done = CliRunner().invoke(app, arguments, obj="mlx")
    assert done.exit_code == 0, done.output
    assert done.output.strip() == str(out)
    assert min(Image.open(out).size) > 150


def test_a_mistake_is_told_as_ever(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["preview", "quickstart", "data.name=nothing"], obj="mlx")
    assert done.exit_code == 2
    assert "unknown data set 'nothing'" in done.output


@pytest.mark.parametrize(
    ("out", "message"),
    [("s.xyz", "should end in .png"), ("file/a.png", "there is no folder"), ("new/a.png", "there is no folder")],
)
def test_a_picture_that_cannot_be_written_is_refused_first(tmp_path: Path, out: str, message: str) -> None:
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(app, ["preview", "no configuration", "--out", str(tmp_path / out)], obj="mlx")
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
