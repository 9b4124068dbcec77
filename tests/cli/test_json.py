"""``--json``: one document on standard output, and nothing else there, of every command that answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from hub_stand_in import standing_in
from PIL import Image

from convert.base import Base, load_base
from convert.timm.write import write_model
from mlx_peft.cli.app import app
from mlx_peft.config.schema import Model

ARGS: dict[str, Any] = {"patch_size": 8, "depth": 2, "embed_dim": 64, "num_heads": 2}
WITHOUT = {"complete": "a script of the shell", "serve": "answers over HTTP"}
"""Commands whose answer is no document, or nothing else."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    base: Base = load_base(Model(name="vit_tiny_patch16_224", weights="none", image_size=16, args=ARGS), 3, seed=0)
    write_model(tmp_path / "m", base=base, tensors=base.tensors, classes=("a", "b", "c"))
    return tmp_path / "m"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images at several depths, and a file that is none."""
    drawn = np.random.default_rng(0).integers(0, 256, (3, 20, 24, 3), np.uint8)
    for name, pixels in zip(("b.png", "a/2.png", "a/b/1.jpg"), drawn, strict=True):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


def commands(group: Any, before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        inner = commands(command, f"{before}{name} ") if hasattr(command, "commands") else {}
        found |= inner if inner and not command.callback else {f"{before}{name}": command} | inner
    return found


def test_every_command_that_answers_has_it() -> None:
    options = {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in commands(typer.main.get_command(app)).items()
    }
    assert {name for name, has in options.items() if "--json" not in has} == WITHOUT.keys()


def test_the_documentation_has_each() -> None:
    page = (Path(__file__).parents[2] / "docs" / "processes.md").read_text("utf-8")
    for name in commands(typer.main.get_command(app)).keys() - WITHOUT.keys():
        assert f"| `{name}` |" in page, name


def document(done: Any, status: int = 0) -> Any:
    assert done.exit_code == status, done.stderr
    return json.loads(done.stdout)


def test_a_schema_is_json_with_the_option_and_without(command: Any) -> None:
    assert document(command("config", "schema", "--json")) == document(command("config", "schema"))


def test_a_recipe_is_shown_copied_and_checked(command: Any) -> None:
    assert document(command("cat", "quickstart", "--json"))["method"]["name"] == "lora"
    assert document(command("cp", "quickstart", "mine.yaml", "--json")) == {"recipe": "quickstart", "file": "mine.yaml"}
    shown = document(command("config", "show", "quickstart", "seed=3", "--json"))
    assert shown["seed"] == 3
    checked = document(command("config", "validate", "quickstart", "seed=3", "--json"))
    assert checked == {"config": "quickstart", "valid": True, "experiment": shown}


def test_a_model_is_quantised(command: Any, model: Path) -> None:
    found = document(command("quantize", model, "small", "--bits", 8, "--group-size", 64, "--json", obj="torch"))
    assert found["quantization"] == {"bits": 8, "group_size": 64} | found["quantization"]
    assert found["sqnr"]["blocks.0.attn.qkv"] > 30
    assert 0 < found["logits_change"] < 0.1 and not found["in_timm"]
    assert found["files"]["small/model.safetensors"] == Path("small/model.safetensors").stat().st_size


def test_a_model_goes_to_the_hub_and_back(command: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with standing_in(monkeypatch, Path("hub").absolute()) as hub:
        tried = document(command("push", model, "jane/m", "--dry-run", "--json"))
        assert tried["commit"] is None and "library_name: timm" in tried["card"] and not hub.repositories
        sent = document(command("push", model, "jane/m", "--json"))
        assert sent["commit"].startswith(f"{hub.address}/jane/m/commit/")
        assert {"config.json", "model.safetensors", "README.md"} <= {*sent["files"]}
        got = document(command("pull", "jane/m", "back", "--json"))
        assert (got["repository"], got["out"]) == ("jane/m", "back")
        assert sent["commit"].endswith(got["commit"])
        assert "back/model.safetensors" in got["files"]


def test_what_is_drawn_is_described(command: Any) -> None:
    found = document(command("data", "preview", "quickstart", "--count", 2, "--json"))
    assert found["file"] == "preview.png" and len(found["images"]) == 2
    assert all(sum(image["classes"].values()) == pytest.approx(1) for image in found["images"])


@pytest.mark.parametrize(
    "arguments",
    [
        ("config", "validate", "quickstart", "lr=1"),
        ("predict", "nowhere", "a.png"),
        ("merge", "nowhere", "out"),
        ("pull", "no name", "out"),
    ],
)
def test_a_mistake_is_a_message_and_no_document(command: Any, arguments: tuple[str, ...]) -> None:
    done = command(*arguments, "--json")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")


def likeliest(result: dict[str, Any]) -> tuple[str, Any]:
    """The first class and its probability, which a batch of another size rounds otherwise."""
    guess = result["predictions"][0]
    return guess["class"], pytest.approx(guess["probability"], rel=1e-5)


class TestPredict:
    def test_folders_are_looked_through_in_order(self, command: Any, model: Path, photos: Path) -> None:
        found = document(command("predict", model, photos, photos / "b.png", "--json", obj="torch"))
        names = ["a/2.png", "a/b/1.jpg", "b.png", "b.png"]
        assert [result["image"] for result in found] == [str(photos / name) for name in names]
        assert all(result["predictions"][0]["class"] in "abc" for result in found)
        lines = command("predict", model, photos, obj="torch").stdout.splitlines()
        assert [line.split()[0] for line in lines] == [str(photos / name) for name in names[:3]]

    def test_what_cannot_be_read_is_named_and_the_rest_answered(self, command: Any, model: Path, photos: Path) -> None:
        answered = document(command("predict", model, photos, "--json", obj="torch"))
        whole = [(one["image"], *likeliest(one)) for one in answered]
        (photos / "a" / "broken.png").write_bytes(b"no image")
        for arguments in ([photos], [photos / "a", photos / "b.png"]):
            done = command("predict", model, *arguments, "--json", obj="torch")
            found = document(done, 1)
            assert [(one["image"], *likeliest(one)) for one in found if "error" not in one] == whole
            (broken,) = (result for result in found if "error" in result)
            assert broken["image"] == str(photos / "a" / "broken.png") and broken["error"] in done.stderr
        done = command("predict", model, photos, obj="torch")
        assert done.exit_code == 1 and "broken.png" not in done.stdout
        assert f"left out, unreadable: {photos / 'a' / 'broken.png'}" in done.stderr

    def test_where_none_can_be_read_it_is_an_error(self, command: Any, model: Path, tmp_path: Path) -> None:
        for name in "ab":
            (tmp_path / f"{name}.png").write_bytes(b"no image")
        done = command("predict", model, "a.png", "b.png", "none.png", obj="torch")
        assert (done.exit_code, done.stdout) == (2, "")
        assert "none of the 3 images can be read; the first: a.png" in done.stderr

    def test_a_folder_without_images_is_refused(self, command: Any, model: Path, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        done = command("predict", model, "empty", obj="torch")
        assert done.exit_code == 2 and "empty: a folder without images" in done.stderr
