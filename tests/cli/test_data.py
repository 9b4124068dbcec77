"""``data check`` on folders with everything in them that a folder can have, and ``ls datasets``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlx_peft.data import REGISTRY, open_dataset

Command = Callable[..., Any]


def picture(seed: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(small).resize((64, 48), Image.Resampling.BICUBIC)


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three splits of two classes, 20 images, and in them one of each fault."""
    root = tmp_path / "photos"
    seed = 0
    for split, count in (("train", 5), ("val", 2), ("test", 3)):
        for name in ("ant", "bee"):
            for number in range(count):
                seed += 1
                save(root / split / name / f"{number}.png", picture(seed))
    save(root / "train" / "ant" / "0.png", picture(1).convert("L"))
    (root / "test" / "ant" / "0.png").write_bytes((root / "train" / "ant" / "1.png").read_bytes())
    (root / "train" / "bee" / "4.png").write_bytes((root / "train" / "ant" / "2.png").read_bytes())
    save(root / "test" / "bee" / "0.png", picture(7).resize((32, 24)))
    (root / "val" / "bee" / "1.png").write_bytes((root / "val" / "bee" / "1.png").read_bytes()[:400])
    save(root / "val" / "ant" / "1.jpg", picture(99), quality=90)
    return root


def test_every_fault_is_found_and_named(command: Command, photos: Path) -> None:
    done = command("data", "check", "folder", f"root={photos}", "--json")
    assert done.exit_code == 1
    report = json.loads(done.stdout)
    assert report["splits"]["train"]["by_class"] == {"ant": 5, "bee": 5}
    assert report["splits"]["val"]["by_class"] == {"ant": 3, "bee": 2}
    assert report["files"] == {"PNG RGB": 18, "PNG L": 1, "JPEG RGB": 1}
    assert report["channels"] == {"grey": 1, "colour": 19}
    assert (report["height"], report["width"]) == (
        {"min": 24, "median": 48, "max": 48},
        {"min": 32, "median": 64, "max": 64},
    )
    (broken,) = report["broken"]["images"]
    assert (broken["split"], broken["image"], broken["class"]) == ("val", "val/bee/1.png", "bee")
    assert "not a readable image" in broken["reason"]
    assert report["copies"] == 2

    def names(key: str) -> list[list[str]]:
        assert report[key]["count"] == len(report[key]["pairs"])
        return [[image["image"] for image in pair] for pair in report[key]["pairs"]]

    assert names("equal_across_splits") == [["test/ant/0.png", "train/ant/1.png"]]
    assert names("equal_with_another_label") == [["train/bee/4.png", "train/ant/2.png"]]
    assert names("near_across_splits") == [["test/bee/0.png", "train/bee/1.png"]]
    with Image.open("contact-sheet.png") as sheet:
        assert sheet.size[0] > 8 * 64
        assert sheet.format == "PNG"


HOSTILE = ("red\x1b[31m\n", "b\u202elue")


def test_names_are_shown_and_never_obeyed(command: Command, tmp_path: Path) -> None:
    """Of classes and of files, also of those whose names are not UTF-8."""
    for number, name in enumerate(HOSTILE):
        for image in range(3):
            save(tmp_path / "photos" / name / f"{image}.png", picture(10 * number + image))
    first = tmp_path / "photos" / HOSTILE[0] / "0.png"
    for name in (b"\xff\x1b.png", b"\xfe\r.png"):
        Path(os.fsdecode(os.fsencode(first.parent) + b"/" + name)).write_bytes(first.read_bytes()[:100])
    root = f"root={tmp_path / 'photos'}"
    done = command("data", "check", "folder", root)
    assert done.exit_code == 1
    assert "red\\x1b[31m\\n" in done.stdout
    assert "b\\u202elue" in done.stdout
    assert "\\xff\\x1b.png" in done.stdout
    assert not set("\x1b\r\u202e") & set(done.stdout)
    report = json.loads(command("data", "check", "folder", root, "--json").stdout)
    assert report["classes"] == sorted(HOSTILE)
    assert {Path(image["image"]).name for image in report["broken"]["images"]} == {"\udcff\x1b.png", "\udcfe\r.png"}


def test_a_class_that_is_not_utf_8_is_refused_with_its_name_written_out(command: Command, tmp_path: Path) -> None:
    for name in (b"caf\xe9", b"bar"):
        save(Path(os.fsdecode(os.fsencode(tmp_path / "photos") + b"/" + name)) / "0.png", picture(0))
    done = command("data", "check", "folder", f"root={tmp_path / 'photos'}")
    assert done.exit_code == 2
    assert "the class name 'caf\\xe9' is not text in UTF-8: rename it" in done.stderr
    assert not Path("contact-sheet.png").exists()


def test_a_person_reads_the_same(command: Command, photos: Path, tmp_path: Path) -> None:
    done = command("data", "check", "folder", f"root={photos}", "--sheet", tmp_path / "here.png")
    assert done.exit_code == 1
    assert done.stdout.startswith("folder: 10 train, 5 val, 6 test; 2 classes\n")
    for line in (
        "ant        5    3     3",
        "broken: 1",
        "images that are in an earlier split too: 1",
        "  test: test/ant/0.png (ant) and train: train/ant/1.png (ant)",
        "images nearly equal to one of an earlier split: 1",
    ):
        assert line in done.stdout.splitlines()
    assert (tmp_path / "here.png").exists()
    assert done.stderr.strip() == str(tmp_path / "here.png")


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["check", "folder", "root=photos"], "--sheet"),
        (["preview", "deit-tiny-lora-cifar10", "data.name=folder", "data.root=photos"], "--out"),
    ],
)
def test_a_picture_takes_no_image_s_place(command: Command, photos: Path, words: list[str], option: str) -> None:
    image = photos / "train" / "bee" / "2.png"
    before = image.read_bytes()
    done = command("data", *words, option, image)
    assert done.exit_code == 2 and f"{option}: {image} is there, among the images of photos" in done.stderr
    assert image.read_bytes() == before


def test_a_sound_set_is_no_failure_and_its_splits_are_those_of_training(command: Command) -> None:
    from mlx_peft.config import schema

    done = command("data", "check", "digits", "split.test=0.2", "split.seed=3", "--json")
    assert done.exit_code == 0
    report = json.loads(done.stdout)
    assert report["splits"]["test"]["size"] == 359
    opened = open_dataset(schema.Data(name="digits", split=schema.Split(test=0.2, seed=3)))
    assert report["splits"]["train"]["sha256"] == opened.train.sha256
    assert report["files"] == {"array": 1797}


def test_what_may_be_skipped_is_still_reported(command: Command, photos: Path) -> None:
    done = command("data", "check", "folder", f"root={photos}", "unreadable=skip", "--json")
    assert json.loads(done.stdout)["broken"]["count"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["folders"], "unknown data set 'folders'; did you mean 'folder'"),
        (["folder", "roots=x"], "roots: unknown key.*did you mean 'root'"),
        (["folder", "split.val=2", "batch_size=0"], "(?s)not a valid data section:\n.*batch_size.*split.val"),
        (["folder", "root=nowhere"], "data.root: nowhere is not a folder"),
        (["digits", "variant=10"], "digits has no variant '10'; there is whole"),
        (["digits", "--sheet", "a.jpg"], r"--sheet: a\.jpg should end in \.png"),
        (["folder", "root=unread", "--sheet", "no/a.png"], r"--sheet: there is no folder no to write a\.png in"),
    ],
)
def test_a_mistake_is_one_message(command: Command, arguments: list[str], message: str) -> None:
    import re

    done = command("data", "check", *arguments)
    assert done.exit_code == 2
    assert re.search(message, done.stderr)
    assert not list(Path().iterdir())


def test_the_report_is_printed_though_the_sheet_cannot_be_drawn(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    done = command("data", "check", "digits")
    assert done.exit_code == 2
    assert done.stdout.startswith("digits: ")
    assert "contact-sheet.png: cannot be written: no space left on the device" in done.stderr


def test_ls_says_of_every_set_what_it_states(command: Command) -> None:
    listed = {entry["name"]: entry for entry in json.loads(command("ls", "datasets", "--json").stdout)}
    assert list(listed) == list(REGISTRY)
    tiny = listed["tiny-imagenet"]
    assert tiny["classes"] == 200
    assert [variant["name"] for variant in tiny["variants"]] == ["official", "80k-10k-10k"]
    assert tiny["variants"][0]["sizes"] == {"train": 100_000, "test": 10_000}
    assert tiny["source"].startswith("http")
    assert tiny["licence"]
    several = [name for name, entry in listed.items() if "several labels an image" in entry["description"]]
    assert several == ["medmnist:chestmnist"]
    text = command("ls", "datasets", "vtab-1k:kitti").stdout.splitlines()
    assert text[0].split() == ["name", "classes", "variants", "licence", "description"]
    assert "tune: 800 train + 200 val; final: 1,000 train + 711 test" in text[1]


def test_a_set_of_the_hub_is_a_valid_name_in_a_configuration(command: Command, tmp_path: Path) -> None:
    from mlx_peft.config import recipes

    (tmp_path / "a.yaml").write_text(recipes.text("vit-small-lora-folder"))
    assert command("config", "validate", "a.yaml", "data.name=hf:owner/name").exit_code == 0
    done = command("config", "validate", "a.yaml", "data.name=hf:owner")
    assert done.exit_code == 2
    assert "data.name: 'hf:owner' is not a data set of the hub" in done.stderr
