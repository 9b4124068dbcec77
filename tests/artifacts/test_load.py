"""Runs and adapters opened again."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from convert.adapters.peft import read_adapter, write_adapter
from mlx_peft.artifacts.examine import evaluate_run
from mlx_peft.artifacts.load import load_run
from mlx_peft.artifacts.merge import merge_run
from mlx_peft.artifacts.predict import predict
from mlx_peft.artifacts.recipe import Recipe
from mlx_peft.core.errors import UserError
from mlx_peft.data import eval_image
from mlx_peft.training.train import train


@pytest.fixture
def run(engine: SimpleNamespace) -> Path:
    """A finished run."""
    train(engine.experiment(), engine.out)
    out: Path = engine.out
    return out


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Images of one colour each: red, green, blue, red, ... of several sizes."""
    paths = []
    for number in range(7):
        pixels = np.zeros((8 + number, 9, 3), np.uint8)
        pixels[..., number % 3] = 255
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def test_a_finished_run_opens_with_what_it_trained(engine: SimpleNamespace, run: Path) -> None:
    loaded = load_run(run)
    assert loaded.classes == ("red", "green", "blue")
    assert loaded.image_size == 8
    assert loaded.recipe == Recipe.of(engine.experiment())
    trained = read_adapter(run / "adapter").tensors
    np.testing.assert_array_equal(loaded.model.adapter()["head.weight"], trained["head.weight"])


def test_another_backend_may_open_it(run: Path) -> None:
    assert load_run(run, "torch").recipe.backend == "torch"


def test_an_adapter_without_its_run_opens_from_what_it_says(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "adapter", tmp_path / "alone")
    alone = load_run(tmp_path / "alone", "torch")
    assert alone.recipe.model == load_run(run).recipe.model
    assert alone.recipe.backend == "torch"


def test_one_of_several_adapters_is_chosen_by_its_name(run: Path, tmp_path: Path) -> None:
    several = tmp_path / "several"
    shutil.copytree(run / "adapter", several / "clinic-a")
    shutil.copytree(run, several / "clinic-b")
    for name in ("clinic-a", "clinic-b"):
        assert load_run(several, name=name).classes == ("red", "green", "blue")
    with pytest.raises(UserError, match="holds several adapters; choose one by its name: clinic-a, clinic-b"):
        load_run(several)
    with pytest.raises(UserError, match=r"no adapter 'clinic-c'.*did you mean 'clinic-"):
        load_run(several, name="clinic-c")


def test_a_name_is_refused_where_there_is_nothing_to_choose(run: Path) -> None:
    with pytest.raises(UserError, match="is one run, not a folder of adapters: leave the name 'x' out"):
        load_run(run, name="x")


def test_what_is_not_a_run_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no adapter"):
        load_run(tmp_path / "empty")
    with pytest.raises(UserError, match="is not a folder"):
        load_run(tmp_path / "missing")
    shutil.rmtree(run / "adapter")
    with pytest.raises(UserError, match="is not finished: continue it first"):
        load_run(run)


def test_an_adapter_for_another_base_is_refused_and_both_are_named(run: Path) -> None:
    adapter = read_adapter(run / "adapter")
    assert adapter.base_sha256 is not None
    shutil.rmtree(run / "adapter")
    write_adapter(run / "adapter", dataclasses.replace(adapter, base_sha256="f" * 64))
    with pytest.raises(UserError, match=rf"another base: .*ffffffffffff .*{adapter.base_sha256[:12]}"):
        load_run(run)


def test_tensors_that_do_not_fit_are_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = read_adapter(run / "adapter")
    smaller = dataclasses.replace(adapter, tensors={"head.bias": adapter.tensors["head.bias"]})
    monkeypatch.setattr("mlx_peft.artifacts.load.read_adapter", lambda folder: smaller)
    with pytest.raises(UserError, match="does not fit vit_tiny_patch16_224"):
        load_run(run)


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluating_a_run_finds_what_the_run_found(engine: SimpleNamespace, tmp_path: Path, split: str) -> None:
    result = train(engine.experiment(), engine.out)
    assert evaluate_run(engine.out, split) == result["metrics"][split]  # type: ignore[arg-type]


def test_a_split_that_is_not_the_runs_is_refused(engine: SimpleNamespace, run: Path) -> None:
    changed = engine.dataset()
    engine.install(dataclasses.replace(changed, test=changed.train))
    with pytest.raises(UserError, match="the test split of colours is not the one of the run: 21 images"):
        evaluate_run(run, "test")
    engine.install(dataclasses.replace(changed, test=None))
    with pytest.raises(UserError, match="has no test split"):
        evaluate_run(run, "test")


def test_other_classes_than_the_runs_are_refused(engine: SimpleNamespace, run: Path) -> None:
    engine.install(dataclasses.replace(engine.dataset(), classes=("blue", "green", "red")))
    with pytest.raises(UserError, match="classes of colours are not those"):
        evaluate_run(run, "test")


def test_predictions_name_the_likeliest_classes_with_their_probabilities(run: Path, images: list[Path]) -> None:
    found = predict(load_run(run), images, top_k=2)
    assert [entry["image"] for entry in found] == [str(path) for path in images]
    assert [entry["predictions"][0]["class"] for entry in found] == [
        "red",
        "green",
        "blue",
        "red",
        "green",
        "blue",
        "red",
    ]
    for entry in found:
        first, second = (prediction["probability"] for prediction in entry["predictions"])
        assert first > second > 0
    whole = predict(load_run(run), images[:1], top_k=99)[0]["predictions"]
    assert sum(prediction["probability"] for prediction in whole) == pytest.approx(1)
    assert len(whole) == 3


def test_a_stored_image_saved_to_a_file_looks_as_it_did_in_the_run(
    engine: SimpleNamespace, run: Path, tmp_path: Path
) -> None:
    """Nothing of it is cropped away, though the weights' own recipe for photographs would."""
    loaded = load_run(run)
    stored = engine.dataset().test.images.read(0)
    Image.fromarray(stored).save(tmp_path / "stored.png")
    seen = eval_image(tmp_path / "stored.png", loaded.preprocessing, loaded.image_size)
    np.testing.assert_array_equal(seen, stored)


def test_predictions_do_not_depend_on_the_batch(run: Path, images: list[Path]) -> None:
    loaded = load_run(run)
    small = dataclasses.replace(loaded, recipe=dataclasses.replace(loaded.recipe, batch_size=3))
    one, other = predict(loaded, images), predict(small, images)
    for first, second in zip(one, other, strict=True):
        # Float32 sums of a batch of another size may be rounded otherwise.
        assert [p["probability"] for p in first["predictions"]] == pytest.approx(
            [p["probability"] for p in second["predictions"]], rel=1e-5
        )


def test_no_images_have_no_predictions(run: Path) -> None:
    assert predict(load_run(run), []) == []


def test_a_broken_image_is_named_and_the_others_are_answered(run: Path, images: list[Path]) -> None:
    whole = predict(load_run(run), images)
    images[2].write_bytes(b"not an image")
    found = predict(load_run(run), images)
    assert found[2]["image"] == str(images[2]) and "2.png" in found[2]["error"]
    assert found[:2] == whole[:2] and found[3:] == whole[3:]
    with pytest.raises(UserError, match=r"2\.png"):
        predict(load_run(run), [images[2]])


def test_a_merged_model_holds_the_trained_head(run: Path, tmp_path: Path) -> None:
    merge_run(run, tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    np.testing.assert_array_equal(merged["head.weight"], read_adapter(run / "adapter").tensors["head.weight"])
    with pytest.raises(UserError, match="already there"):
        merge_run(run, tmp_path / "merged")
