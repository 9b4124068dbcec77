"""Training by one call: a notebook's model where it stands, and an experiment in its folder."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest
from comparing import relative
from library.conftest import CLASSES, MODULES, SIZE, create
from PIL import Image

from mlx_peft.config.schema import Experiment
from mlx_peft.core.errors import UserError
from mlx_peft.notebook import fitting

BACKENDS = 1e-4
"""Of parameters, relative: what the backends' roundings have grown to after some steps."""
OPTIONS = {"epochs": 2, "lr": 1e-2, "batch_size": 8, "quiet": True}


@pytest.fixture(scope="module")
def colours():
    """Pictures whose class is their colour, with noise, and the classes."""
    random = np.random.default_rng(0)
    labels = np.arange(40) % len(CLASSES)
    levels = random.integers(0, 256, (len(CLASSES), 3))[labels][:, None, None]
    return np.clip(levels + random.normal(0, 20, (40, SIZE, SIZE, 3)), 0, 255).astype(np.uint8), labels


def adapted(mp, **options):
    model = create(mp, **options)
    mp.add_adapter(model, "lora", rank=2)
    return model


def test_a_model_is_trained_where_it_stands(mp, colours):
    model = adapted(mp)
    before, network = mp.evaluate(model, colours)["loss"], model
    found = mp.fit(model, colours, **OPTIONS | {"epochs": 6})
    assert model is network and found.folder is None
    assert mp.evaluate(model, colours)["loss"] < before / 2
    assert found.val["count"] == 4 and 1 <= found.epoch <= 6 and found.test is None
    assert [record["epoch"] for record in found.history if "epoch" in record]
    assert repr(found).startswith(f"Fitted(epoch {found.epoch}, val top1 ")


def test_both_backends_train_alike(colours):
    found = []
    for mp in MODULES.values():
        model = adapted(mp)
        mp.fit(model, colours, **OPTIONS)
        found.append(mp.state_dict(model))
    assert all(relative(found[0][name], found[1][name]) <= BACKENDS for name in found[0])


def test_training_goes_on_from_where_the_model_is(mp, colours):
    """What was trained by hand is the beginning: at a rate of nearly nothing it stays as it is."""
    model = adapted(mp)
    step = mp.training_step(model, mp.optimizer(model, lr=1e-2))
    for _ in range(3):
        step(*colours)
    before = mp.state_dict(model)
    mp.fit(model, colours, **OPTIONS | {"lr": 1e-12, "epochs": 1})
    after = mp.state_dict(model)
    assert all(np.allclose(after[name], before[name], atol=1e-8) for name in before)


def test_a_folder_is_a_data_set(mp, colours, tmp_path):
    for number, (image, label) in enumerate(zip(*colours, strict=True)):
        file = tmp_path / CLASSES[label] / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(file)
    model = adapted(mp)
    found = mp.fit(model, {"name": "folder", "root": tmp_path, "split": {"val": 0.2, "test": 0.2}}, **OPTIONS)
    assert found.test["count"] == found.val["count"] == 8
    assert model.classes == CLASSES


def test_an_epoch_is_a_line(mp, colours, capsys):
    mp.fit(adapted(mp), colours, **OPTIONS | {"quiet": False})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert "val top1" in lines[0] and "loss" in lines[0]


def test_what_was_trained_until_it_was_stopped_stays(mp, colours, monkeypatch):
    model = adapted(mp)
    before = mp.state_dict(model)

    monkeypatch.setattr(fitting.Telling, "epoch", lambda self, event: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        mp.fit(model, colours, **OPTIONS | {"quiet": False})
    after = mp.state_dict(model)
    assert any(not np.array_equal(before[name], after[name]) for name in before)


def test_training_that_fails_leaves_a_model_as_it_was(mp, colours):
    model = adapted(mp)
    before = mp.state_dict(model)
    with pytest.raises(UserError, match="training diverged"):
        mp.fit(model, colours, **OPTIONS | {"epochs": 30, "lr": 1e37})
    after = mp.state_dict(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_an_experiment_becomes_a_run(mp, tmp_path):
    experiment = Experiment.model_validate({
        "model": {"name": "vit_tiny_patch16_224", "weights": "package:quickstart"},
        "method": {"name": "linear"},
        "data": {"name": "digits", "split": {"val": 0.1, "test": 0.8}},
        "train": {"epochs": 1},
    })  # fmt: skip
    found = mp.fit(experiment, out=tmp_path / "run", quiet=True)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert found.folder == tmp_path / "run" and found.test == result["metrics"]["test"]
    backend = {module: name for name, module in MODULES.items()}[mp]
    assert result["backend"] == backend
    assert mp.load(found.folder).classes == tuple("0123456789")
    (tmp_path / "my.yaml").write_text((tmp_path / "run" / "config.yaml").read_text())
    with pytest.raises(UserError, match="in which folder, out="):
        mp.fit(tmp_path / "my.yaml")


def test_paths_in_a_file_may_be_relative_to_it(mp, tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(20):
        file = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (number % 2 * 200, number, 0)).save(file)
    (tmp_path / "my.yaml").write_text(
        "model: {name: vit_tiny_patch16_224, weights: none, image_size: 8, "
        "args: {patch_size: 4, embed_dim: 8, depth: 1, num_heads: 1}}\n"
        "method: {name: linear}\ndata: {name: folder, root: photos}\ntrain: {epochs: 1}\n"
    )
    assert mp.fit(tmp_path / "my.yaml", out=tmp_path / "run", quiet=True).folder == tmp_path / "run"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda mp, data: mp.fit(create(mp), data), "no method: add one with add_adapter"),
        (lambda mp, data: mp.fit(adapted(mp)), "data should be a folder"),
        (lambda mp, data: mp.fit(adapted(mp), data, epochs=0), r"^Experiment: train\.epochs"),
        (lambda mp, data: mp.fit(adapted(mp), data, epoch=3), r"train\.epoch: .*'epochs'"),
        (lambda mp, data: mp.fit(adapted(mp), data, out="x"), "without a folder"),
        (lambda mp, data: mp.fit("quickstart", out="x", epochs=3), "says itself what epochs is"),
        (lambda mp, data: mp.fit(adapted(mp), "digits"), "digits has 10 classes, and the model's head has 4 rows"),
        (lambda mp, data: mp.fit(adapted(mp, seed=1), data, **OPTIONS), "drawn from another seed"),
    ],
)
def test_what_cannot_be_is_told(mp, colours, call, message):
    with pytest.raises(UserError, match=message):
        call(mp, colours)
