"""A run begins with another run, merged, or with an adapter: with what was trained, and an optimiser that is new."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from fake_backend import CLASSES, make_dataset

from convert.adapters.peft import read_adapter
from mlx_peft.artifacts.examine import evaluate_run
from mlx_peft.artifacts.load import load_run
from mlx_peft.config.schema import Experiment
from mlx_peft.core.errors import UserError
from mlx_peft.protocols.model import Model
from mlx_peft.training.here import located
from mlx_peft.training.prepare import Prepared, prepare
from mlx_peft.training.progress import Silent, StepEvent
from mlx_peft.training.run import RunFolder, run_id
from mlx_peft.training.train import train

ROUNDING = 1e-5
"""A product with W + s B A is rounded otherwise than W and the update one after the other, in float32."""

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
ARGS = {"patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}


class Watcher(Silent):
    """Keeps the notes, and ends the run at a step, if it is to."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop, self.notes = stop, list[str]()

    def note(self, text: str) -> None:
        self.notes.append(text)

    def step(self, event: StepEvent) -> None:
        if event.step == self.stop:
            raise RuntimeError("stop here")


class Earlier(NamedTuple):
    """A finished run, and the experiment that made it."""

    run: Path
    experiment: Experiment


def experiment_of(backend: str, model: dict[str, Any] | None = None, **changes: Any) -> Experiment:
    return Experiment.model_validate({
        "backend": backend,
        "model": {"name": "vit_tiny_patch16_224", "weights": "none", "image_size": 8, "args": ARGS} | (model or {}),
        "method": {"name": "lora", "rank": 2},
        "data": {"name": "colours", "batch_size": 8, "threads": 1},
        "train": {"epochs": 1, "log_every": 1, "optimizer": {"name": "adamw", "lr": 0.02}},
    } | changes)  # fmt: skip


@pytest.fixture(scope="module", params=["mlx", "torch"])
def earlier(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Earlier:
    place, experiment = tmp_path_factory.mktemp("earlier") / "run", experiment_of(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlx_peft.training.prepare.open_dataset", lambda config, watch=None: make_dataset())
        train(experiment, place)
    return Earlier(place, experiment)


pytestmark = pytest.mark.usefixtures("colours")


def begun(experiment: Experiment, watcher: Watcher | None = None, folder: Path = Path("new")) -> Prepared:
    return prepare(experiment, watcher or Watcher(), located(experiment, RunFolder(folder)))


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def on(earlier: Earlier, **changes: Any) -> Experiment:
    """An experiment whose base is the run, merged."""
    return experiment_of(earlier.experiment.backend, {"weights": str(earlier.run)}, **changes)


def after(earlier: Earlier, method: dict[str, Any] | None = None, **changes: Any) -> Experiment:
    """An experiment that goes on with the run's adapter."""
    method = {"name": "lora", "rank": 2, "from": str(earlier.run)} | (method or {})
    return experiment_of(earlier.experiment.backend, method=method, **changes)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("start", [on, after])
def test_it_begins_with_the_answers_of_the_run_and_says_so(earlier: Earlier, start: Any) -> None:
    watcher = Watcher()
    expected = load_run(earlier.run).model.logits(IMAGES)
    model: Model = begun(start(earlier), watcher).trainer.model
    assert relative(model.logits(IMAGES), expected) <= ROUNDING
    assert relative(begun(earlier.experiment).trainer.model.logits(IMAGES), expected) > 100 * ROUNDING
    key = "model.weights" if start is on else "method.from"
    assert any(note.startswith(key) and "the optimiser is new" in note for note in watcher.notes)
    assert any("kept, its classes are the data's" in note for note in watcher.notes)


@pytest.mark.parametrize("start", [on, after])
def test_the_optimiser_is_new(earlier: Earlier, start: Any) -> None:
    states = [begun(one).trainer.state() for one in (start(earlier), earlier.experiment)]
    slots = [{name: state[name] for name in state if not name.startswith("parameters.")} for state in states]
    assert slots[0].keys() == slots[1].keys() >= {"step"}  # torch makes moments at the first step
    for name, slot in slots[1].items():
        np.testing.assert_array_equal(slots[0][name], slot, err_msg=name)


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("start", "key"), [(on, "weights"), (after, "adapter")])
def test_the_result_says_what_it_began_with(earlier: Earlier, start: Any, key: str, tmp_path: Path) -> None:
    result = train(start(earlier), tmp_path / "new")
    assert result["began_with"]["optimizer"] == "new"
    assert result["began_with"][key]["path"] == str(earlier.run) and len(result["began_with"][key]["sha256"]) == 64
    assert evaluate_run(tmp_path / "new") == result["metrics"]["test"]
    assert "began_with" not in json.loads((earlier.run / "result.json").read_text())


@pytest.mark.one_in(2)
@pytest.mark.parametrize("start", [on, after])
def test_a_run_that_began_with_another_goes_on_to_the_same_end(earlier: Earlier, start: Any, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    shutil.copytree(earlier.run, gone)
    experiment = start(Earlier(gone, earlier.experiment), train=earlier.experiment.train.model_dump() | {"epochs": 2})
    whole = train(experiment, tmp_path / "whole")
    with pytest.raises(RuntimeError):
        train(experiment, tmp_path / "new", progress=Watcher(stop=8))
    if start is after:
        shutil.rmtree(gone)  # its values are in the checkpoint
    found = train(experiment, tmp_path / "new", resume=True)
    assert {key: found[key] for key in ("run_id", "metrics", "began_with")} == {
        key: whole[key] for key in ("run_id", "metrics", "began_with")
    }


def test_a_base_that_was_merged_has_the_same_digest_whichever_backend_merges(earlier: Earlier) -> None:
    both = [on(earlier).model_copy(update={"backend": backend}) for backend in ("mlx", "torch")]
    digests = {begun(one).base.sha256 for one in both}
    assert len(digests) == 1


def test_a_run_on_a_run_finds_it_beside_itself_under_any_name(
    earlier: Earlier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(earlier.run, tmp_path / "base")
    result = train(on(Earlier(tmp_path / "base", earlier.experiment)), tmp_path / "new")
    (tmp_path / "there").mkdir()
    (tmp_path / "base").rename(tmp_path / "there" / "first")
    (tmp_path / "new").rename(tmp_path / "there" / "second")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert evaluate_run(tmp_path / "there" / "second") == result["metrics"]["test"]


def test_a_run_on_a_run_that_was_changed_is_refused(earlier: Earlier, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    shutil.copytree(earlier.run, tmp_path / "base")
    train(on(Earlier(tmp_path / "base", earlier.experiment)), tmp_path / "new")
    shutil.rmtree(tmp_path / "base")
    train(experiment_of(earlier.experiment.backend, seed=1), tmp_path / "base")
    with pytest.raises(UserError, match=r"was trained on weights \w{12} [\s\S]*base has \w{12}"):
        load_run(tmp_path / "new")


def test_the_head_is_new_where_it_is_asked_for(earlier: Earlier) -> None:
    own = read_adapter(earlier.run / "adapter").tensors["head.weight"]
    for experiment in (on(earlier), after(earlier)):
        model = experiment.model.model_copy(update={"head": "new"})
        kept, new = (
            begun(one).trainer.model.adapter()["head.weight"]
            for one in (experiment, experiment.model_copy(update={"model": model}))
        )
        np.testing.assert_array_equal(kept, own)
        assert (new != own).any()


def test_the_head_of_other_classes_is_new(earlier: Earlier, monkeypatch: pytest.MonkeyPatch) -> None:
    others = make_dataset()
    object.__setattr__(others, "classes", ("cyan", *CLASSES[1:]))
    monkeypatch.setattr("mlx_peft.training.prepare.open_dataset", lambda config, watch=None: others)
    own = read_adapter(earlier.run / "adapter").tensors["head.weight"]
    for experiment in (on(earlier), after(earlier)):
        assert (begun(experiment).trainer.model.adapter()["head.weight"] != own).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"method": {"rank": 4}},
            r"method\.from: .*does not fit .*: it was trained with rank 2 \(now 4\)$",
        ),
        (
            {"method": {"targets": ["fc1"]}},
            r"method\.from: .*does not fit the method.* with targets .* \(now \['fc1'\]\)$",
        ),
        ({"seed": 1}, r"method\.from: .* was trained on weights \w{12} .*random has \w{12}"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(earlier: Earlier, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        begun(after(earlier, **changes))


def test_options_that_differ_are_noted(earlier: Earlier) -> None:
    watcher = Watcher()
    begun(after(earlier, {"alpha": 8.0}), watcher)
    assert "method.from: it was trained with alpha 16.0 (now 8.0)" in watcher.notes


def test_what_is_no_finished_run_is_refused(earlier: Earlier, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"method\.from: .* holds no adapter"):
        begun(after(Earlier(tmp_path, earlier.experiment)))
    shutil.copy(earlier.run / "config.yaml", tmp_path)
    with pytest.raises(UserError, match=r"model\.weights: .* is a run that is not finished"):
        begun(on(Earlier(tmp_path, earlier.experiment)))


def test_what_a_run_begins_with_decides_its_outcome_and_nothing_decides_it_as_before(earlier: Earlier) -> None:
    plain = experiment_of(earlier.experiment.backend)
    assert "from" not in plain.model_dump(mode="json")["method"]
    assert len({run_id(one, {}) for one in (plain, on(earlier), after(earlier))}) == 3
    written = after(earlier).model_dump(mode="json")
    assert written["method"]["from"] == str(earlier.run)
    assert Experiment.model_validate(written) == after(earlier)


def test_an_adapter_does_not_say_with_what_it_began(earlier: Earlier, tmp_path: Path) -> None:
    train(after(earlier), tmp_path / "new")
    assert read_adapter(tmp_path / "new" / "adapter").method.start is None


def test_what_is_lost_far_below_is_said_once_to_what_stands_on_it(
    earlier: Earlier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    first, second, third = (tmp_path / "runs" / name for name in ("first", "second", "third"))
    shutil.copytree(earlier.run, first)
    for base, run in ((first, second), (second, third)):
        train(experiment_of(earlier.experiment.backend, {"weights": str(base)}), run)
    expected = load_run(third).model.logits(IMAGES)
    shutil.move(first, tmp_path / "kept" / "renamed")
    shutil.rmtree(tmp_path / "caches")
    with pytest.raises(UserError, match=r"second/adapter was trained on .*first") as caught:
        load_run(third)
    command = caught.value.command
    assert command is not None and not caught.value.arguments, "weights that are named here are those of third's base"
    assert (command.words, command.options) == (("eval", str(second)), {"weights": "WEIGHTS"})
    load_run(second, weights=str(tmp_path / "kept" / "renamed"))
    np.testing.assert_array_equal(load_run(third).model.logits(IMAGES), expected)
