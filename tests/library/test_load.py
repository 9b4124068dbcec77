"""One door for whatever there is of a model, and how good it is on whatever there is of images."""

from __future__ import annotations

import json
import shutil
import warnings

import numpy as np
import pytest
from comparing import relative
from library.conftest import CLASSES, MODULES, create
from PIL import Image

from mlx_peft.artifacts.load import load_run
from mlx_peft.artifacts.merge import merge_run
from mlx_peft.artifacts.predict import predict
from mlx_peft.config.schema import Experiment
from mlx_peft.core.errors import UserError
from mlx_peft.training.train import train

ONCE = {"epochs": 1, "batch_size": 2, "val": 0.0, "quiet": True}
BACKENDS = 1e-5
"""Relative, float32: one model in two frameworks."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run on digits, of the shipped model."""
    out = tmp_path_factory.mktemp("runs") / "run"
    experiment = Experiment.model_validate({
        "backend": "torch",
        "model": {"name": "vit_tiny_patch16_224", "weights": "package:quickstart"},
        "method": {"name": "linear"},
        "data": {"name": "digits", "split": {"val": 0.1, "test": 0.1}},
        "train": {"epochs": 1},
    })  # fmt: skip
    train(experiment, out)
    merge_run(out, out.parent / "merged")
    return out


@pytest.fixture(scope="module")
def digits():
    return np.random.default_rng(0).integers(0, 256, (4, 28, 28, 3), dtype=np.uint8)


def test_a_run_an_adapter_and_a_model_are_told_apart(mp, run, digits):
    expected = load_run(run, "torch").model.logits(digits)
    for source in (run, str(run), run / "adapter", run.parent / "merged"):
        model = mp.load(source)
        assert relative(model.logits(digits), expected) <= BACKENDS
        assert model.classes == tuple("0123456789") and model.predict(digits[0]).name in model.classes
    assert mp.load(run).method.name == "linear" and mp.load(run.parent / "merged").method is None
    assert relative(mp.load(run.parent, adapter="run").logits(digits), expected) <= BACKENDS


def test_what_is_loaded_can_be_trained_and_saved(mp, run, digits, tmp_path):
    model = mp.load(run.parent / "merged")
    mp.add_adapter(model, "lora", rank=2)
    mp.training_step(model, mp.optimizer(model))(digits, [0, 1, 2, 3])
    mp.save_adapter(model, tmp_path / "adapter")
    other = next(module for module in MODULES.values() if module is not mp)
    found = other.load(tmp_path / "adapter")  # its weights are known by their digest
    assert relative(found.logits(digits), model.logits(digits)) <= BACKENDS
    again = other.load(tmp_path / "adapter", weights=str(run.parent / "merged"))
    assert np.array_equal(again.logits(digits), found.logits(digits))
    assert mp.fit(mp.load(tmp_path / "adapter"), (digits, [0, 1, 2, 3]), **ONCE).epoch == 1
    again = mp.load(run)
    mp.training_step(again, mp.optimizer(again))(digits, [0, 1, 2, 3])
    mp.save_adapter(again, tmp_path / "further")
    assert mp.load(tmp_path / "further").classes == again.classes


def test_the_command_line_says_the_same(mp, run, digits, tmp_path):
    file = tmp_path / "a.png"
    Image.fromarray(digits[0, :20]).save(file)
    backend = {module: name for name, module in MODULES.items()}[mp]
    (theirs,) = predict(load_run(run, backend), [file], 3)
    ours = [{"class": name, "probability": pytest.approx(p)} for name, p in mp.load(run).predict(file).top(3)]
    assert theirs["predictions"] == ours


def test_a_shipped_model_and_a_file_of_weights_are_models(mp, run, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "Sneaker" in mp.load("package:quickstart").classes
    weights = shutil.copy(run.parent / "merged" / "model.safetensors", tmp_path / "own.safetensors")
    with pytest.raises(UserError, match=r"file of weights: say of which model"):
        mp.load(weights)
    args = {"image_size": 28, "args": {"patch_size": 7, "embed_dim": 96, "depth": 4, "num_heads": 4}}
    assert mp.create_model("vit_tiny_patch16_224", weights=weights, **args).head.weight.shape[0] == 10


def test_an_adapter_of_pefts_says_no_model(mp, run, digits, tmp_path):
    shutil.copytree(run / "adapter", tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "vit_tiny_patch16_224"
    model = mp.load(tmp_path / "adapter")
    assert relative(model.logits(digits), load_run(run, "torch").model.logits(digits)) <= BACKENDS


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no_such_model", "unknown model 'no_such_model'"),
        ("package:no", "no model 'no' in this package; it has quickstart"),
    ],
)
def test_what_is_not_there_is_told(mp, source, message):
    with pytest.raises(UserError, match=message):
        mp.load(source)


def test_a_folder_that_holds_nothing_is_told(mp, tmp_path):
    with pytest.raises(UserError, match="holds no adapter"):
        mp.load(tmp_path)


def test_a_run_is_as_good_as_its_result_says(mp, run):
    result = json.loads((run / "result.json").read_text())["metrics"]["test"]
    found = mp.evaluate(run)
    assert found["count"] == result["count"] and found["loss"] == pytest.approx(result["loss"], rel=1e-4)
    model = mp.load(run)
    split = {"val": 0.1, "test": 0.1}
    again = mp.evaluate(model, {"name": "digits", "split": split}, "test")
    assert again["loss"] == pytest.approx(result["loss"], rel=1e-4)


def test_arrays_folders_and_files_are_measured_alike(mp, images, labels, tmp_path):
    model = create(mp)
    found = mp.evaluate(model, (images, labels))
    logits = model.logits(images)
    assert found["top1"] == pytest.approx((logits.argmax(1) == labels).mean())
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        file = tmp_path / CLASSES[label] / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(file)
    answers = model.predict(tmp_path)
    right = np.mean([answer.image.split("/")[-2] == answer.name for answer in answers])
    assert mp.evaluate(model, tmp_path)["top1"] == pytest.approx(right)


def test_classes_are_compared_by_their_names(mp, images, labels, tmp_path):
    """A folder's are in alphabetical order; the model has others, in another order, and one of which there are none."""
    model = create(mp, classes=("zebra", "fox", "dog", "cat", "bird"))
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        file = tmp_path / CLASSES[label] / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(file)
    with pytest.warns(UserWarning, match="no images of 1 class, such as 'zebra'"):
        found = mp.evaluate(model, tmp_path)
    rows = np.array([model.classes.index(CLASSES[label]) for label in labels])
    logits = model.logits(images).astype(float)
    expected = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(rows)), rows]
    assert found["loss"] == pytest.approx(expected.mean(), rel=1e-4)
    assert found["top1"] == pytest.approx((logits.argmax(1) == rows).mean())
    unnamed = create(mp, classes=None, num_classes=5)
    with pytest.raises(UserError, match="has 4 classes, and the model's head has 5 rows"):
        mp.evaluate(unnamed, tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "say which, data="),
        (3, r"two arrays, \(images, labels\), not int"),
        ("no_such_set", "data.name"),
        ({"nme": "digits"}, "nme"),
        ("digits", r"the classes of digits are not those that the model was trained on, such as '0'"),
    ],
)
def test_images_that_are_none_are_told(mp, data, message):
    with pytest.raises(UserError, match=message):
        mp.evaluate(create(mp), data)


def test_labels_that_do_not_fit_are_told(mp, images):
    with pytest.raises(UserError, match="8 images and 2 labels"):
        mp.evaluate(create(mp), (images, [0, 1]))
    with pytest.raises(UserError, match="labels 0 to 9, not 0 to 3"):
        mp.evaluate(create(mp), (images, [0, 1, 2, 3, 4, 5, 6, 9]))
