"""Where a run's weights and images are looked for: a place that may not be looked at ends no search."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from convert.adapters.peft import Adapter, read_adapter, write_adapter
from mlx_peft.artifacts.load import load_run
from mlx_peft.config.methods import Linear, LoRA
from mlx_peft.config.quantization import Quantization
from mlx_peft.core.errors import UserError
from mlx_peft.training.places import Found, Start, candidates, read_found
from mlx_peft.training.run import RunFolder
from mlx_peft.training.train import train
from mlx_peft.training.whereabouts import merged_digest


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes a folder one whose inside the user may not look at, also where the tests are root's."""

    def forbid(folder: Path) -> None:
        for name, usual in [(name, getattr(os, name)) for name in ("stat", "lstat", "listdir", "scandir", "open")]:

            def guarded(path: Any = ".", *args: Any, usual: Any = usual, **options: Any) -> Any:
                if isinstance(path, str | os.PathLike) and folder in Path(os.path.abspath(path)).parents:
                    raise PermissionError(13, "Permission denied", os.fspath(path))
                return usual(path, *args, **options)

            monkeypatch.setattr(os, name, guarded)

    return forbid


def rewritten(run: Path, **found: str) -> None:
    """What a run says that it found becomes something else."""
    config = run / "config.yaml"
    head, mark, section = config.read_text().partition("found:\n")
    lines = [
        next((f"  {key}: {json.dumps(value)}" for key, value in found.items() if line.startswith(f"  {key}: ")), line)
        for line in section.splitlines()
    ]
    config.write_text("\n".join([f"{head}{mark[:-1]}", *lines, ""]))
    (run / "SHA256SUMS.txt").unlink()


@pytest.mark.parametrize("place", ["closed/home/base", "closed"])
def test_a_place_that_may_not_be_looked_at_does_not_end_the_search(
    engine: SimpleNamespace,
    tmp_path: Path,
    forbidden: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    train(engine.experiment(epochs=1), tmp_path / "base")
    experiment = engine.experiment(epochs=1)
    model = experiment.model.model_copy(update={"weights": str(tmp_path / "base")})
    expected = train(experiment.model_copy(update={"model": model}), tmp_path / "run")
    shutil.rmtree(tmp_path / "caches")
    (tmp_path / "there").mkdir()
    for name in ("base", "run"):
        (tmp_path / name).rename(tmp_path / "there" / name)
    (tmp_path / "closed").mkdir()
    rewritten(tmp_path / "there" / "run", weights=str(tmp_path / place), data=str(tmp_path / place))
    forbidden(tmp_path / "closed")
    loaded = load_run(tmp_path / "there" / "run")
    assert loaded.base.source == str(tmp_path / "there" / "base")
    longer = experiment.model_copy(update={"train": experiment.train.model_copy(update={"epochs": 2}), "model": model})
    result = train(longer, tmp_path / "there" / "run", resume=True)
    assert result["model"] == expected["model"]


@pytest.mark.parametrize("linked", [False, True])
def test_a_run_in_the_home_folder_does_not_say_whose_it_is(
    engine: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: bool
) -> None:
    """Its base is found all the same: in the home folder of whoever asks, though the run itself was moved elsewhere."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    zoe, home = tmp_path / "zoe-5e1f", tmp_path / "link"
    zoe.mkdir()
    home.symlink_to(zoe)
    monkeypatch.setenv("HOME", str(home if linked else zoe))
    monkeypatch.chdir(zoe)
    experiment = engine.experiment(epochs=1)
    train(experiment, Path("models/base"))
    model = experiment.model.model_copy(update={"weights": "models/base"})
    train(experiment.model_copy(update={"model": model}), Path("runs/mine"))
    config = (zoe / "runs" / "mine" / "config.yaml").read_text()
    assert "zoe-5e1f" not in config and "run: ~/runs/mine" in config and "weights: ~/models/base" in config
    found = Found.now(zoe, experiment, "0" * 64, Start(adapter=str(zoe / "models"), sha256=""))
    assert "zoe-5e1f" not in json.dumps(found.model_dump(mode="json"))
    shutil.rmtree(tmp_path / "caches")
    monkeypatch.chdir("/")
    monkeypatch.setenv("HOME", str(tmp_path / "jane"))
    (tmp_path / "jane").mkdir()
    (zoe / "models").rename(tmp_path / "jane" / "models")
    (tmp_path / "got" / "here").mkdir(parents=True)
    (zoe / "runs" / "mine").rename(tmp_path / "got" / "here" / "mine")
    assert load_run(tmp_path / "got" / "here" / "mine").base.source == str(tmp_path / "jane" / "models" / "base")


def test_what_earlier_versions_found_is_looked_for_in_the_home_folder_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    found = Found(run="/home/zoe/runs/a", home="/home/zoe", data="/home/zoe/photos", base_sha256="")
    assert tmp_path / "photos" in candidates("photos", Path("/got/a"), found, "data")
    assert Found(run="~/a", data="~", base_sha256="").data == str(tmp_path)


@pytest.mark.parametrize("path", ["", "images"])
@pytest.mark.parametrize("key", ["data", "run", "weights"])
def test_what_was_found_has_whole_paths(engine: SimpleNamespace, key: str, path: str) -> None:
    with pytest.raises(UserError, match=f"{key}: should be a whole path, from the root on, not '{path}'"):
        Found(**{"run": "/r", "home": "/h", "data": "/d", "base_sha256": "0" * 64, key: path})
    if key == "data":
        train(engine.experiment(epochs=1), engine.out)
        rewritten(engine.out, data=path)
        with pytest.raises(UserError, match=r"config\.yaml: found[\s\S]*data[\s\S]* should be a whole path"):
            read_found(RunFolder(engine.out))


def test_adapters_that_stand_on_themselves_or_on_each_other_are_refused(
    engine: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    train(engine.experiment(epochs=1), engine.out)
    adapter = read_adapter(engine.out / "adapter")
    assert adapter.model is not None
    model = adapter.model
    for name, base in (("alone", "alone"), ("one", "other"), ("other", "one")):
        named = model.model_copy(update={"weights": base})
        write_adapter(tmp_path / "got" / name, Adapter(**{**vars(adapter), "model": named, "base_sha256": None}))
    for name in ("alone", "one", "other"):
        with pytest.raises(UserError, match="stands on itself") as caught:
            load_run(tmp_path / "got" / name)
        assert caught.value.arguments == ("weights",)


def test_the_digest_of_what_is_merged_stays_where_options_are_new() -> None:
    """In what was written before, it tells a run's base: options at their defaults are no part of it."""
    tensors = {"blocks.0.attn.qkv.lora_A": np.arange(6, dtype=np.float32).reshape(2, 3)}
    plain = Adapter(LoRA(rank=2), tensors, (), None, None, None, "0" * 64, "")
    assert merged_digest(plain)[:12] == "dc8952802aca"
    assert merged_digest(replace(plain, quantize=Quantization(bits=4)))[:12] == "f08f66e74406"
    assert merged_digest(replace(plain, method=Linear()))[:12] == "ec072b900703"
