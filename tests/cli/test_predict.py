"""``predict``: which images are meant, how answers are written, and features of one model."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
import pytest
import timm
import torch
from comparing import LOGITS, relative
from PIL import Image
from safetensors.numpy import save_file
from typer.testing import CliRunner

from convert.base import Base, load_base
from convert.timm.write import write_model
from mlx_peft.artifacts import embeddings
from mlx_peft.artifacts.answering import OneModel
from mlx_peft.artifacts.load import load_any
from mlx_peft.artifacts.predict import answers
from mlx_peft.cli.app import app
from mlx_peft.cli.common import standard_input
from mlx_peft.config.schema import Model
from mlx_peft.data import eval_image
from mlx_peft.data.questions import about

ARGS: dict[str, Any] = {"patch_size": 8, "depth": 2, "embed_dim": 64, "num_heads": 2}
NAMES = ["a.png", "b.png", "c.png"]


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base(Model(name="vit_tiny_patch16_224", weights="none", image_size=16, args=ARGS), 3, seed=0)


@pytest.fixture(scope="module")
def model(base: Base, tmp_path_factory) -> Path:
    place: Path = tmp_path_factory.mktemp("models") / "m"
    write_model(place, base=base, tensors=base.tensors, classes=("x", "y", "=z"))
    return place


@pytest.fixture
def images(command: Any) -> list[str]:
    """Three images in the working directory."""
    for name, pixels in zip(NAMES, np.random.default_rng(0).integers(0, 256, (3, 20, 24, 3), np.uint8), strict=True):
        Image.fromarray(pixels).save(name)
    return NAMES


def lines(done: Any) -> list[dict[str, Any]]:
    assert done.exit_code == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def named(done: Any) -> list[str]:
    return [one["image"] for one in lines(done)]


class TestImages:
    def test_a_list_names_them_relative_to_itself(self, command, model, images, tmp_path: Path) -> None:
        (tmp_path / "lists").mkdir()
        whole = tmp_path / "a.png"
        Path("lists/l.txt").write_bytes(b"\xef\xbb\xbf../b.png\r\n\r\n" + os.fsencode(whole) + b"\n")
        asked = ("predict", model, "c.png", "lists/l.txt", "a.png", "--format", "jsonl")
        assert named(command(*asked, obj="torch")) == ["c.png", "lists/../b.png", str(whole), "a.png"]

    def test_a_name_that_is_not_utf_8_is_found_by_its_bytes(self, command, model, images) -> None:
        os.rename(b"a.png", b"caf\xe9.png")
        Path("l.txt").write_bytes(b"caf\xe9.png\n")
        done = command("predict", model, "l.txt", "--format", "jsonl", obj="torch")
        assert named(done) == ["caf\udce9.png"]
        shown = command("predict", model, "l.txt", "--format", "csv", obj="torch").stdout
        assert r"caf\xe9.png" in shown.splitlines()[1]
        assert command("predict", model, "l.txt", "--features", "f.npz", obj="torch").exit_code == 0
        assert np.load("f.npz")["images"].tolist() == ["caf\udce9.png"]
        assert command("predict", model, "l.txt", "--features", "f.parquet", obj="torch").exit_code == 0

    def test_standard_input_is_a_list_that_is_read_as_it_comes(self, model, images) -> None:
        words = ["predict", str(model), "-", "--format", "jsonl"]
        done = CliRunner().invoke(app, words, obj="torch", input=b"c.png\na.png\n")
        assert named(done) == ["c.png", "a.png"]
        done = CliRunner().invoke(app, words, obj="torch", input=b"")
        assert done.exit_code == 2 and "no image is named: the list is empty" in done.stderr

    def test_an_image_is_answered_before_the_next_one_is_named(self, model, images) -> None:
        """A pipe whose writer names an image once the one before is answered."""
        read, write = os.pipe()
        with os.fdopen(read, "rb") as stream, os.fdopen(write, "wb", buffering=0) as writer:
            ends = Timer(20, writer.close)  # where an answer waits for the next name
            ends.start()
            writer.write(b"a.png\nb.p")
            loaded = load_any(model, "torch")
            found = answers(OneModel.of(loaded), about(["-"], stream))
            assert next(found)["image"] == "a.png"
            writer.write(b"ng\n")
            assert next(found)["image"] == "b.png"
            writer.write(b"c.png")  # without an end
            writer.close()
            assert [one["image"] for one in found] == ["c.png"]
            ends.cancel()

    @pytest.mark.parametrize("command_", ["predict", "explain"])
    def test_a_closed_standard_input_matters_to_nobody_but_a_list_there(
        self, command_, model, images, monkeypatch
    ) -> None:
        monkeypatch.setattr(f"mlx_peft.cli.{command_}.standard_input", lambda: None)
        words = ["--out", "told"] if command_ == "explain" else []
        done = CliRunner().invoke(app, [command_, str(model), "a.png", *words], obj="torch")
        assert done.exit_code == 0, done.stderr
        done = CliRunner().invoke(app, [command_, str(model), "-", *words], obj="torch")
        assert done.exit_code == 2 and "- is a list on standard input, and that is closed" in done.stderr
        monkeypatch.setattr("sys.stdin", None)
        assert standard_input() is None

    @pytest.mark.parametrize(
        ("content", "message"),
        [(b"\n", "l.txt lists nothing"), (b"version https://git-lfs.github.com/spec/v1\n", "LFS")],
    )
    def test_a_list_of_nothing_is_refused(self, command, model, images, content, message) -> None:
        Path("l.txt").write_bytes(content)
        done = command("predict", model, "l.txt", obj="torch")
        assert done.exit_code == 2 and message in done.stderr

    def test_no_image_at_all_is_refused(self, command, model) -> None:
        done = command("predict", model, obj="torch")
        assert done.exit_code == 2 and "no images are named" in done.stderr


class TestForms:
    def test_each_says_the_same(self, command, model, images) -> None:
        asked = ("predict", model, *images, "--top", 2)
        told = lines(command(*asked, "--format", "jsonl", obj="torch"))
        assert told == json.loads(command(*asked, "--json", obj="torch").stdout)
        rows = list(csv.DictReader(io.StringIO(command(*asked, "--format", "csv", obj="torch").stdout)))
        assert [float(row["probability"]) for row in rows] == [
            guess["probability"] for one in told for guess in one["predictions"]
        ]
        assert {row["class"] for row in rows} <= {"x", "y", "'=z"}  # no spreadsheet takes it for a formula
        assert [row["image"] for row in rows[::2]] == images and [row["rank"] for row in rows] == ["1", "2"] * 3
        table = command(*asked, obj="torch").stdout.splitlines()
        assert [line.split()[0] for line in table[::2]] == images and len(table) == 6

    @pytest.mark.parametrize(("file", "first"), [("o.csv", "image,"), ("o.jsonl", "{"), ("o.txt", "a.png ")])
    def test_a_file_s_name_says_its_form(self, command, model, images, file, first) -> None:
        done = command("predict", model, *images, "--out", file, obj="torch")
        assert (done.exit_code, done.stdout) == (0, f"{file}  3 images\n")
        assert Path(file).read_text().startswith(first)
        done = command("predict", model, *images, "--out", "o.dat", "--format", "csv", "--json", obj="torch")
        assert json.loads(done.stdout) == {"file": "o.dat", "images": 3, "unreadable": []}
        assert Path("o.dat").read_text().startswith("image,")

    def test_what_was_there_stays_where_nothing_can_be_answered(self, command, model, images) -> None:
        Path("broken.png").write_bytes(b"no image")
        Path("o.csv").write_text("before")
        for words in (("--out", "o.csv"), ("--features", "f.npz")):
            done = command("predict", model, "broken.png", *words, obj="torch")
            assert done.exit_code == 2 and done.stderr.count("broken.png") == 1
        assert Path("o.csv").read_text() == "before"
        assert sorted(os.listdir()) == [*NAMES[:2], "broken.png", NAMES[2], "o.csv"]

    @pytest.mark.parametrize("words", [("--out", "o.csv"), ("--features", "f.npz"), ("--features", "f.parquet")])
    def test_nothing_half_written_is_left_by_an_interrupt(self, command, model, images, words, monkeypatch) -> None:
        monkeypatch.setattr("mlx_peft.data.stream.PREFETCH", 0)
        reads = []

        def read(*arguments: Any) -> np.ndarray:
            reads.append(arguments)
            if len(reads) > 70:  # after the first batch
                raise KeyboardInterrupt
            return eval_image(*arguments)

        monkeypatch.setattr("mlx_peft.artifacts.predict.eval_image", read)
        before = sorted(os.listdir())
        done = command("predict", model, *images * 40, *words, obj="torch")
        assert done.exit_code == 130 and len(reads) > 64
        assert sorted(os.listdir()) == before

    def test_one_that_cannot_be_read_has_a_line_and_is_in_no_features(self, command, model, images) -> None:
        Path("b.png").write_bytes(b"no image")
        done = command("predict", model, *images, "--format", "jsonl", obj="torch")
        assert done.exit_code == 1
        assert ["error" in json.loads(line) for line in done.stdout.splitlines()] == [False, True, False]
        assert done.stderr.startswith("left out, unreadable: b.png")
        done = command("predict", model, *images, "--features", "f.npz", obj="torch")
        assert (done.exit_code, done.stdout) == (1, "f.npz  2 images, dim 64, dtype float32\n")
        assert np.load("f.npz")["images"].tolist() == ["a.png", "c.png"]

    def test_one_long_name_makes_no_other_line_long(self, command, model, images) -> None:
        Path("l.txt").write_text("a.png\n" + "a/" * 5000 + "b.png\n" + "./" * 60 + "c.png\n")
        done = command("predict", model, "l.txt", obj="torch")
        assert done.exit_code == 1
        first, last = done.stdout.splitlines()
        assert len(first) < 120 and "./" * 60 not in first and last.split()[0].endswith("c.png")
        (left_out,) = done.stderr.splitlines()
        assert left_out.startswith("left out, unreadable: a/a/") and len(left_out) < 1100

    def test_nothing_more_is_answered_once_the_reader_is_gone(self, command, model, images, monkeypatch) -> None:
        monkeypatch.setattr("mlx_peft.cli.predict.reader_gone", lambda: True)
        assert len(command("predict", model, *images, obj="torch").stdout.splitlines()) == 1

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--json", "--format", "csv"), "--json writes one document: leave --format out"),
            (("--out", "o.dat"), "--out: o.dat should end in .txt, .csv, .jsonl; or say what it is to be"),
            (("--out", "no/o.csv"), "--out: there is no folder no to write o.csv in"),
            (("--features", "f.h5"), "--features: f.h5 should end in .npz or .parquet"),
            (("--features", "f.npz", "--top", "2", "--out", "o.csv"), "leave --top and --out out"),
            (("--adapters", "t.csv"), "t.csv says itself which images there are"),
        ],
    )
    def test_words_that_do_not_go_together_are_refused(self, command, model, images, words, message) -> None:
        done = command("predict", model, *images, *words, obj="torch")
        assert (done.exit_code, done.stdout) == (2, "") and message in done.stderr


def timms(base: Base, images: list[str]) -> np.ndarray:
    """The vector before the head, by timm."""
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=16, num_classes=3, **ARGS).eval()
    theirs.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in base.tensors.items()})
    mean, std = (torch.tensor(value) for value in (base.preprocessing.mean, base.preprocessing.std))
    seen = torch.from_numpy(np.stack([eval_image(image, base.preprocessing, 16) for image in images]))
    with torch.no_grad():
        x = theirs.forward_features(((seen / 255 - mean) / std).permute(0, 3, 1, 2))
        return theirs.forward_head(x, pre_logits=True).numpy()


class TestFeatures:
    @pytest.mark.parametrize("backend", ["mlx", "torch"])
    def test_those_of_a_model_are_timm_s(self, command, model, base, images, backend) -> None:
        done = command("predict", model, *images, "--features", "f.npz", obj=backend)
        assert done.exit_code == 0, done.stderr
        with np.load("f.npz") as found:
            assert found["images"].tolist() == images and found["adapters"].tolist() == ["", "", ""]
            assert found["features"].dtype == np.float32
            assert relative(found["features"], timms(base, images)) < LOGITS

    def test_no_classifier_is_needed(self, command, base, images, tmp_path: Path) -> None:
        bare = {name: tensor for name, tensor in base.tensors.items() if not name.startswith("head")}
        write_model(tmp_path / "bare", base=base, tensors=bare, classes=())
        assert command("predict", "bare", *images, obj="torch").exit_code == 2
        done = command("predict", "bare", *images, "--features", "f.parquet", obj="torch")
        assert done.exit_code == 0, done.stderr

    def test_weights_are_named_by_a_model_or_a_model_by_its_weights(self, command, images) -> None:
        name = "vit_tiny_patch16_224.augreg_in21k"
        whole = load_base(Model(name=name, weights="none", args={"depth": 12}), 3, seed=0)
        save_file(dict(whole.tensors), "w.safetensors")
        for words in ((name, "--weights", "w.safetensors"), ("w.safetensors", "--model", name)):
            done = command("predict", *words, *images, "--image-size", 32, "--features", f"{words[0]}.npz", obj="torch")
            assert done.exit_code == 0 and "pos_embed: 14 x 14 resized to 2 x 2" in done.stderr
        one, other = (np.load(f"{source}.npz")["features"] for source in (name, "w.safetensors"))
        assert np.array_equal(one, other) and one.shape == (3, 192)
        done = command(
            "predict", "w.safetensors", *images, "--model", name, "--weights", "w.safetensors", "--features", "f.npz"
        )
        assert done.exit_code == 2 and "w.safetensors has weights of its own" in done.stderr

    def test_they_are_written_in_groups_as_they_come(self, command, model, images, monkeypatch) -> None:
        from pyarrow import parquet

        monkeypatch.setattr(embeddings, "GROUP", 2)
        many = images * 30  # more than a batch
        for kind in ("parquet", "npz"):
            assert command("predict", model, *many, "--features", f"f.{kind}", obj="torch").exit_code == 0
        file = parquet.ParquetFile("f.parquet")
        assert file.num_row_groups > 1 and file.metadata.num_rows == len(many)
        rows = np.array(file.read()["features"].to_pylist(), np.float32)
        found = np.load("f.npz")
        assert found["images"].tolist() == file.read()["image"].to_pylist() == many
        assert np.array_equal(found["features"], rows)
