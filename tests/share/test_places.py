"""Nothing that is made to be shared names a place, a user or a host: looked for in every byte of it."""

from __future__ import annotations

import json
import platform
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np
import pytest
from PIL import Image
from pydantic import BaseModel
from safetensors.numpy import load_file, save_file

from convert.adapters.description import METADATA
from convert.adapters.peft import read_adapter, write_adapter
from convert.base import load_base
from convert.places import last_part, without_places
from mlx_peft.artifacts.share import packed
from mlx_peft.cli.push import commands
from mlx_peft.config.schema import Experiment, Model
from mlx_peft.core.sums import SUMS
from mlx_peft.report.card import PLACES, PUBLISHED, card
from mlx_peft.training.run import RunFolder
from mlx_peft.training.train import train

USER, HOST, FOLDER = "zoe-user-5e1f", "zoes-host-9c2d", "zoes-folder-77ab"
"""Words that are in no file for another reason."""

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def owner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever runs this is zoe, at home on her own host."""
    for name in ("USER", "LOGNAME", "USERNAME"):
        monkeypatch.setenv(name, USER)
    monkeypatch.setenv("HOSTNAME", HOST)
    monkeypatch.setattr(socket, "gethostname", lambda: HOST)
    monkeypatch.setattr(platform, "node", lambda: HOST)
    real = platform.uname()._replace(node=HOST)
    monkeypatch.setattr(platform, "uname", lambda: real)


ARGS = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}


@pytest.fixture(scope="module")
def mine(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose weights, data and cache lie in zoe's folders."""
    folder = tmp_path_factory.mktemp("home") / USER / FOLDER
    folder.mkdir(parents=True)
    values = experiment.model_dump()
    values["model"] |= {"args": ARGS}
    save_file(dict(load_base(Model.model_validate(values["model"]), 10, seed=0).tensors), folder / "base.safetensors")
    values["model"] |= {"weights": str(folder / "base.safetensors")}
    values["data"] |= {"root": str(folder / "data"), "cache": {"folder": str(folder / "cache")}}
    train(Experiment.model_validate(values), folder / "first")
    values["method"] |= {"from": str(folder / "first")}
    train(Experiment.model_validate(values), folder / "run")
    return folder / "run"


def user_paths(section: type[BaseModel]) -> Iterator[tuple[str, ...]]:
    """The fields of a section, and of those below it, that hold a path on the user's machine."""
    for name, field in section.model_fields.items():
        for inner in types_in(field.annotation):
            if inner is Path:
                yield (name,)
            elif isinstance(inner, type) and get_origin(inner) is None and issubclass(inner, BaseModel):
                yield from ((name, *rest) for rest in user_paths(inner))


def types_in(annotation: Any) -> Iterator[Any]:
    yield annotation
    for inner in get_args(annotation):
        yield from types_in(inner)


def test_the_run_that_is_pushed_names_every_path_there_is(mine: Path) -> None:
    """Otherwise a new field is not looked for in what is pushed."""
    for path in {*user_paths(Experiment)}:
        value: Any = RunFolder(mine).read_config()
        for name in path:
            value = getattr(value, name)
        assert isinstance(value, Path) and value.is_relative_to(mine.parent), path


def test_no_field_that_is_published_is_a_path() -> None:
    for first, *rest in {*user_paths(Experiment)}:
        published = PUBLISHED.get(first, ())
        assert rest[0] in PLACES.get(first, ()) if published is True else rest[0] not in published, (first, *rest)


def test_an_adapter_that_says_what_its_training_began_with_says_it_to_nobody(mine: Path, tmp_path: Path) -> None:
    """As another program may have written one."""
    write_adapter(tmp_path / "theirs", read_adapter(mine / "adapter"))
    path = tmp_path / "theirs" / "adapter_model.safetensors"
    described = json.loads(_metadata(path)[METADATA])
    described["method"]["from"] = str(mine.parent / "first")
    save_file(load_file(path), path, {METADATA: json.dumps(described)})
    (tmp_path / "theirs" / SUMS).unlink()
    assert read_adapter(tmp_path / "theirs").method.start is not None
    with packed(tmp_path / "theirs") as parcel:
        must_name_no_place("README.md", card(parcel, "jane/digits", commands(parcel, "jane/digits")).encode())
        for name, file in parcel.files.items():
            must_name_no_place(name, file.read_bytes())


def must_name_no_place(name: str, content: bytes) -> None:
    for word in (USER, HOST, FOLDER, str(REPOSITORY), sys.prefix):
        for text in (word.encode(), word.encode("utf-16-le")):
            assert text not in content, f"{name} holds {word}: {content[max(content.find(text) - 80, 0) :][:200]!r}"


def must_be_shareable(path: Path) -> None:
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    assert files
    for file in files:
        must_name_no_place(str(file), file.read_bytes())
        must_name_no_place("a file's name", str(file.relative_to(path.parent)).encode())


NAME = "vit_tiny_patch16_224.augreg_in21k"
SET = [word for key, value in ARGS.items() for word in ("--set", f"{key}={value}")]
COMMANDS = {
    "merge": ["merge", "{run}", "{out}"],
    "quantize": ["quantize", "{run}", "{out}", "--bits", "4", "--group-size", "32"],
    "timm": ["convert", "{run}", "{out}", "--no-verify", "--to", "timm"],
    "transformers": ["convert", "{run}", "{out}", "--no-verify", "--to", "transformers"],
    "torchvision": ["convert", "{run}", "{out}", "--no-verify", "--to", "torchvision"],
    "mlx": ["convert", "{run}", "{out}", "--no-verify", "--to", "mlx"],
    "peft": ["convert", "{run}", "{out}", "--no-verify", "--to", "peft"],
    "onnx": ["convert", "{run}", "{out}.onnx", "--to", "onnx"],
    "coreml": ["convert", "{run}", "{out}.mlpackage", "--to", "coreml"],
    "base": [
        "convert",
        "{base}",
        "{out}",
        "--no-verify",
        "--to",
        "mlx",
        "--model",
        "vit_tiny_patch16_224.augreg_in21k",
        *SET,
    ],
}


SLOW = ("onnx", "coreml")


@pytest.mark.parametrize("made", [pytest.param(one, marks=[pytest.mark.slow] * (one in SLOW)) for one in COMMANDS])
def test_no_byte_of_what_a_command_makes(made: str, mine: Path, owner: None, command: Any, tmp_path: Path) -> None:
    places = {"run": mine, "out": tmp_path / "out", "base": mine.parent / "base.safetensors"}
    arguments = [argument.format(**places) for argument in COMMANDS[made]]
    done = command(*arguments)
    assert done.exit_code == 0, done.output
    for out in tmp_path.glob("out*"):
        must_be_shareable(out)


def test_no_byte_of_the_runs_own_adapter(mine: Path) -> None:
    must_be_shareable(mine / "adapter")


@pytest.mark.parametrize("merged", [False, True])
def test_no_byte_of_what_is_pushed(mine: Path, owner: None, merged: bool, tmp_path: Path) -> None:
    shutil.copytree(mine, tmp_path / "run")
    with_a_whole_path(tmp_path / "run" / "adapter", mine.parent / "base.safetensors")
    with packed(tmp_path / "run", "torch", merged=merged) as parcel:
        must_name_no_place("README.md", card(parcel, "jane/digits", commands(parcel, "jane/digits")).encode())
        for name, path in parcel.files.items():
            must_name_no_place(name, path.read_bytes())


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 32, 3), np.uint8)).save(tmp_path / "image.png")
    return tmp_path / "image.png"


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine on which nobody has opened any weights."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))


def test_the_run_still_finds_its_weights_and_an_adapter_alone_those_beside_it(
    mine: Path, command: Any, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = json.loads(command("predict", mine, image, "--json").stdout)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    alone = tmp_path / "alone" / "adapter"
    write_adapter(alone, read_adapter(mine / "adapter"))
    refused = command("predict", alone, image, "--json")
    assert refused.exit_code == 2 and "was trained on base.safetensors, which is not there" in refused.stderr
    weights = (mine.parent / "base.safetensors").read_bytes()
    for place in (alone, alone.parent, tmp_path):
        (place / "base.safetensors").write_bytes(weights)
        assert json.loads(command("predict", alone, image, "--json").stdout) == expected
        (place / "base.safetensors").unlink()


def test_other_weights_of_the_same_name_are_told_by_their_digest(
    mine: Path, command: Any, image: Path, elsewhere: None
) -> None:
    other = {name: tensor + 1 for name, tensor in load_file(mine.parent / "base.safetensors").items()}
    save_file(other, image.parent / "base.safetensors")
    write_adapter(image.parent / "adapter", read_adapter(mine / "adapter"))
    refused = command("predict", "adapter", image)
    assert refused.exit_code == 2 and re.search(
        r"was trained on weights \w{12} .*\n  .*base\.safetensors has \w{12}", refused.stderr
    )


def test_an_adapter_of_before_with_a_whole_path_opens(mine: Path, command: Any, image: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "old", read_adapter(mine / "adapter"))
    with_a_whole_path(tmp_path / "old", mine.parent / "base.safetensors")
    assert read_adapter(tmp_path / "old").source == str(mine.parent / "base.safetensors")
    expected = command("predict", mine, image, "--json").stdout
    assert json.loads(command("predict", "old", image, "--json").stdout) == json.loads(expected)


def with_a_whole_path(adapter: Path, weights: Path) -> None:
    """As adapters were written before."""
    path = adapter / "adapter_model.safetensors"
    described = json.loads(_metadata(path)[METADATA])
    described["model"]["weights"] = described["source"] = str(weights)
    save_file(load_file(path), path, {METADATA: json.dumps(described)})


def _metadata(path: Path) -> dict[str, str]:
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    found: dict[str, str] = json.loads(content[8:end])["__metadata__"]
    return found


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("/home/zoe/models/vit.safetensors", "vit.safetensors"),
        ("~/models/vit", "vit"),
        ("~", "weights"),
        ("/", "weights"),
        ("../zoe/vit.pth", "vit.pth"),
        ("C:\\Users\\zoe\\vit.bin", "vit.bin"),
        ("\\\\host\\share\\zoe\\vit.bin", "vit.bin"),
        ("file:///home/zoe/vit.bin", "vit.bin"),
        ("smb://host/zoe/vit.bin", "vit.bin"),
    ],
)
def test_the_last_part_of_a_place_is_kept(place: str, name: str) -> None:
    assert last_part(place) == name
    assert without_places(place) == name


@pytest.mark.parametrize("text", ["google/vit-base-patch16-224", "timm/vit.x", "https://host/a/b", "random", "1/2 x"])
def test_what_is_no_place_stays(text: str) -> None:
    assert without_places(text) == text
