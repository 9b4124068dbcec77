"""A run is moved, and so are its weights and its images: whoever uses it finds them, and nothing in their place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from convert import known
from convert.adapters.peft import read_adapter
from convert.base import load_base
from mlx_peft.artifacts.examine import evaluate_run, examine_splits
from mlx_peft.artifacts.load import load_run
from mlx_peft.artifacts.merge import merge_run, quantize_model
from mlx_peft.artifacts.predict import predict
from mlx_peft.config.files import load
from mlx_peft.config.quantization import Quantization
from mlx_peft.config.schema import Experiment
from mlx_peft.core.errors import UserError
from mlx_peft.training.progress import Silent, StepEvent
from mlx_peft.training.run import RunFolder, run_id
from mlx_peft.training.train import train
from mlx_peft.training.whereabouts import weights_digest

CLASSES = ("blue", "green", "red")
MODEL = {
    "name": "vit_tiny_patch16_224.augreg_in21k",
    "image_size": 8,
    "args": {"patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 1},
}


class Stop(Silent):
    """Ends a run after its second step, as an error would."""

    def step(self, event: StepEvent) -> None:
        if event.step == 2:
            raise RuntimeError("stop here")


class Trained(NamedTuple):
    """A folder where somebody trained, with a finished run and one that an error ended, by relative paths."""

    home: Path
    experiment: Experiment
    result: dict[str, Any]


def pictures(folder: Path, each: int = 6, classes: tuple[str, ...] = CLASSES, seed: int = 0) -> Path:
    """Noisy images of one colour each, in a folder for each class of train and test."""
    rng = np.random.default_rng(seed)
    for split, name in [(split, name) for split in ("train", "test") for name in classes]:
        (folder / split / name).mkdir(parents=True)
        for number in range(each):
            pixels = rng.integers(0, 160, (8, 8, 3)).astype(np.uint8)
            pixels[..., ("red", "green", "blue").index(name)] += 90
            Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


def experiment_of(**changes: Any) -> Experiment:
    return Experiment.model_validate({
        "model": MODEL | {"weights": "base.safetensors"},
        "method": {"name": "lora", "rank": 2},
        "data": {"name": "folder", "root": "photos", "batch_size": 8, "threads": 1, "split": {"val": 0.2}},
        "train": {"epochs": 2, "log_every": 1},
    } | changes)  # fmt: skip


@pytest.fixture(scope="module", params=["mlx", "torch"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    home = tmp_path_factory.mktemp("home")
    experiment = experiment_of(backend=request.param)
    base = load_base(experiment.model.model_copy(update={"weights": "none"}), 5, 3)
    save_file(base.tensors, home / "base.safetensors")
    pictures(home / "photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        result = train(experiment, Path("runs/done"))
        with pytest.raises(RuntimeError):
            train(experiment, Path("runs/half"), progress=Stop())
    return Trained(home, experiment, result)


@pytest.fixture
def moved(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another machine: the runs in one folder, the weights under another name in a second, the images in a third."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    for name in ("done", "half"):
        shutil.copytree(trained.home / "runs" / name, tmp_path / "got" / name)
        forget(tmp_path / "got" / name)
    (tmp_path / "weights").mkdir()
    shutil.copy(trained.home / "base.safetensors", tmp_path / "weights" / "backbone.safetensors")
    shutil.copytree(trained.home / "photos", tmp_path / "images")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def forget(run: Path) -> None:
    """The whole paths in a configuration become those of a machine that is not there."""
    config = run / "config.yaml"
    head, mark, found = config.read_text().partition("found:")
    lines = [
        line if "sha256" in line else f"{line.partition(': ')[0]}: /gone/{n}"
        for n, line in enumerate(found.split("\n")[1:-1])
    ]
    config.write_text("\n".join([f"{head}{mark}", *lines, ""]))
    sums = run / "SHA256SUMS.txt"
    sums.write_text("".join(line for line in sums.read_text().splitlines(True) if "config.yaml" not in line))


def test_the_configuration_has_what_was_written_and_what_it_was_resolved_to(trained: Trained) -> None:
    run = trained.home / "runs" / "done"
    text = (run / "config.yaml").read_text()
    assert "weights: base.safetensors" in text and "root: photos" in text
    assert f"weights: {trained.home}/base.safetensors" in text and f"data: {trained.home}/photos" in text
    assert load(run / "config.yaml") == trained.experiment
    assert trained.result["run_id"] == run_id(trained.experiment, trained.result["splits"])


def test_a_moved_run_is_evaluated_predicted_with_merged_and_resumed_from_a_third_folder(
    trained: Trained, moved: Path
) -> None:
    run, weights, images = moved / "got" / "done", str(moved / "weights" / "backbone.safetensors"), moved / "images"
    shown = [images / "test" / "red" / "0.png"]
    expected = predict(load_run(trained.home / "runs" / "done"), shown)
    assert predict(load_run(run, weights=weights), shown) == expected
    where = [f"data.root={images}"]
    assert evaluate_run(run, weights=weights, overrides=where) == trained.result["metrics"]["test"]
    merge_run(run, moved / "merged", weights=weights)
    merge_run(trained.home / "runs" / "done", moved / "at-home")
    files = [load_file(moved / name / "model.safetensors") for name in ("merged", "at-home")]
    for name, tensor in files[1].items():
        np.testing.assert_array_equal(files[0][name], tensor, err_msg=name)
    half = load(RunFolder(moved / "got" / "half").config, where)
    resumed = train(half, moved / "got" / "half", resume=True, weights=weights)
    assert {key: resumed[key] for key in ("run_id", "metrics", "model")} == {
        key: trained.result[key] for key in ("run_id", "metrics", "model")
    }
    adapters = [path / "adapter" / "adapter_model.safetensors" for path in (moved / "got" / "half", run)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def test_weights_that_were_opened_once_are_found_again_by_their_digest(moved: Path) -> None:
    run = moved / "got" / "done"
    with pytest.raises(UserError, match=r"was trained on base\.safetensors, which is not there") as caught:
        load_run(run)
    assert caught.value.arguments == ("weights",)
    load_run(run, weights=str(moved / "weights" / "backbone.safetensors"))
    assert any("weights are taken from" in note for note in load_run(run).notes)
    (moved / "weights" / "backbone.safetensors").unlink()
    with pytest.raises(UserError, match="is not there"):
        load_run(run)


@pytest.mark.parametrize("place", ["got/done/any.safetensors", "got/any.safetensors", "here/base.safetensors"])
def test_weights_lie_beside_the_run_or_where_they_are_written(moved: Path, place: str) -> None:
    shutil.copy(moved / "weights" / "backbone.safetensors", moved / place)
    assert load_run(moved / "got" / "done").base.source == str(moved / place) or place.startswith("here")


def test_a_run_that_was_moved_with_all_it_needs_finds_it(trained: Trained, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    shutil.copytree(trained.home, tmp_path / "copy")
    (tmp_path / "photos").mkdir()  # another folder of the name that was written
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "copy" / "runs" / "done"
    assert evaluate_run(run) == trained.result["metrics"]["test"]
    assert Path(load_run(run).base.source).absolute() == tmp_path / "copy" / "base.safetensors"


def test_other_weights_are_refused_with_both_digests(trained: Trained, moved: Path) -> None:
    other = moved / "weights" / "other.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(trained.home / "base.safetensors").items()}, other)
    digest = read_adapter(moved / "got" / "done" / "adapter").base_sha256
    assert digest is not None
    with pytest.raises(UserError, match=rf"trained on weights {digest[:12]} .*other\.safetensors has \w{{12}}"):
        load_run(moved / "got" / "done", weights=str(other))
    where = [f"data.root={moved / 'images'}"]
    half = moved / "got" / "half"
    with pytest.raises(UserError, match=rf"it began on {digest[:12]} .*other\.safetensors has \w{{12}}"):
        train(load(half / "config.yaml", where), half, resume=True, weights=str(other))
    shutil.copy(other, "base.safetensors")
    with pytest.raises(UserError, match=rf"trained on weights {digest[:12]} [\s\S]*base\.safetensors has \w{{12}}"):
        load_run(moved / "got" / "done")


def test_a_folder_of_another_model_s_name_is_passed_by_though_it_was_read_before(moved: Path) -> None:
    """Two names may stand for one shape, and the same numbers be in both: a run's model is the one that it names."""
    run = moved / "got" / "done"
    adapter = read_adapter(run / "adapter")
    folder = moved / "weights" / "another"
    merge_run(run, folder, weights=str(moved / "weights" / "backbone.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architecture": "deit_tiny_patch16_224"}))
    known.remember(folder, str(adapter.base_sha256))
    assert known.digest_at(folder) == adapter.base_sha256
    assert weights_digest(folder, adapter.model) is None


def test_a_whole_model_has_weights_of_its_own(trained: Trained, tmp_path: Path) -> None:
    merge_run(trained.home / "runs" / "done", tmp_path / "merged")
    with pytest.raises(UserError, match="is a whole model, with weights of its own"):
        quantize_model(tmp_path / "merged", tmp_path / "small", Quantization(bits=4, group_size=32), weights="b")


def test_images_that_are_gone_are_told_with_where_they_were(moved: Path) -> None:
    with pytest.raises(UserError, match=r"the run found its images in /gone/\d: say where they are now, data\.root="):
        evaluate_run(moved / "got" / "done", weights=str(moved / "weights" / "backbone.safetensors"))


def test_the_training_split_is_the_one_that_the_run_had(trained: Trained) -> None:
    run = trained.home / "runs" / "done"
    done = examine_splits(run, ["train"], overrides=[f"data.root={trained.home / 'photos'}"])
    assert done.images.own and not done.images.notes
    assert done.splits["train"].sha256 == trained.result["splits"]["train"]["sha256"]
    assert done.found["train"].metrics["count"] == trained.result["splits"]["train"]["size"]


class TestOtherImages:
    """Of the same classes, in another folder or another data set."""

    @pytest.fixture
    def run(self, trained: Trained) -> Path:
        return trained.home / "runs" / "done"

    def test_their_own_test_split_is_taken_and_it_is_said_that_they_are_others(self, run: Path, tmp_path: Path) -> None:
        others = pictures(tmp_path / "others", each=4, seed=1)
        done = examine_splits(run, [None], overrides=[f"data.root={others}"])
        assert (done.images.own, done.found["test"].metrics["count"]) == (False, 12)
        assert any("is not the run's own split" in note for note in done.loaded.notes)

    def test_all_are_taken_where_they_have_no_test_split(self, run: Path, tmp_path: Path) -> None:
        others = pictures(tmp_path / "others", each=4, seed=1) / "train"
        done = examine_splits(run, [None], overrides=[f"data.root={others}"])
        assert {name: found.metrics["count"] for name, found in done.found.items()} == {"all": 12}

    def test_classes_in_another_order_are_found_by_their_names(self, run: Path, tmp_path: Path) -> None:
        others = pictures(tmp_path / "others", each=4, seed=1)
        expected = evaluate_run(run, overrides=[f"data.root={others}"])
        rows = [f"test/{name}/{n}.png,{name}" for name in ("red", "blue", "green") for n in range(4)]
        (others / "list.csv").write_text("\n".join(["image,label", *rows]))
        done = examine_splits(run, [None], overrides=["data.name=csv", f"data.root={others / 'list.csv'}"])
        assert done.found["all"].metrics["top1"] == expected["top1"]
        assert done.found["all"].metrics["loss"] == pytest.approx(expected["loss"], rel=1e-5)  # other batches

    def test_a_class_may_be_missing_and_none_may_be_new(self, run: Path, tmp_path: Path) -> None:
        few = pictures(tmp_path / "few", each=4, classes=("green", "red"))
        done = examine_splits(run, [None], overrides=[f"data.root={few}"])
        assert done.found["test"].metrics["count"] == 8
        assert any("no images of 1 class, such as 'blue'" in note for note in done.loaded.notes)
        (few / "test" / "green").rename(few / "test" / "yellow")
        (few / "train" / "green").rename(few / "train" / "yellow")
        with pytest.raises(UserError, match=r"classes of folder are not those that the run was trained on.*'yellow'"):
            evaluate_run(run, overrides=[f"data.root={few}"])

    def test_nothing_but_images_is_changed(self, run: Path) -> None:
        with pytest.raises(UserError, match=r"method\.rank: a run is measured as it is"):
            evaluate_run(run, overrides=["method.rank=3"])


def test_results_do_not_say_where_anything_lay(trained: Trained) -> None:
    """But for ``config.yaml``, and what a user wrote."""
    run = trained.home / "runs" / "done"
    assert str(trained.home) not in json.dumps(trained.result)
    assert str(trained.home).encode() not in (run / "adapter" / "adapter_model.safetensors").read_bytes()
