"""Sent to the hub and fetched from it again: a stand-in on this machine answers as the hub does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
from comparing import relative
from hub_answers import ADAPTER, done, failed
from safetensors.numpy import save_file

from convert.timm.write import write_model
from mlx_peft.artifacts.load import load_model, load_run
from mlx_peft.artifacts.merge import merge_run
from mlx_peft.config.schema import Experiment
from mlx_peft.core.sums import SUMS
from mlx_peft.training.train import train

LOGITS = 1e-5  # relative, float32: a merged weight is rounded once more


class TestThereAndBack:
    def test_an_adapter_comes_back_byte_for_byte_and_predicts_the_same(self, hub, run, command, image, tmp_path):
        pushed = done(command("push", run, "jane/digits"))
        assert pushed.stdout.startswith(f"{hub.address}/jane/digits/commit/")
        done(command("pull", "jane/digits", "got"))
        assert {path.name for path in (tmp_path / "got").iterdir()} == {*ADAPTER, SUMS, "README.md"}
        for name in ADAPTER:
            assert (tmp_path / "got" / name).read_bytes() == (run / "adapter" / name).read_bytes()
        here, there = (
            json.loads(command("predict", path, image, "--top", 10, "--json").stdout) for path in (run, "got")
        )
        assert here == there

    def test_a_merged_model_comes_back_and_timm_opens_it(self, hub, run, command, images, tmp_path):
        done(command("push", run, "jane/merged", "--merged"))
        done(command("pull", "jane/merged", "got"))
        expected = load_run(run).model.logits(images)
        loaded = load_model(tmp_path / "got", "torch")
        assert relative(loaded.model.logits(images), expected) <= LOGITS
        assert loaded.classes == load_run(run).classes
        assert timm.create_model(f"local-dir:{tmp_path / 'got'}", pretrained=True).num_classes == 10

    def test_so_does_the_folder_of_a_model(self, hub, run, command, tmp_path):
        merge_run(run, tmp_path / "merged")
        (tmp_path / "merged" / "notes.txt").write_text("mine")
        pushed = command("push", "merged", "lab/model")
        assert "left out: notes.txt" in pushed.stderr
        done(command("pull", "lab/model", "got"))
        for name in ("config.json", "model.safetensors"):
            assert (tmp_path / "got" / name).read_bytes() == (tmp_path / "merged" / name).read_bytes()

    def test_so_does_a_quantised_one_which_timm_is_not_promised(self, hub, experiment, command, images, tmp_path):
        args = experiment.model.args | {"embed_dim": 64, "num_heads": 2}
        few = {"quantize": {"bits": 4, "group_size": 32}, "method": {"name": "linear"}}
        model = experiment.model.model_copy(update={"args": args}).model_dump()
        train(Experiment.model_validate(experiment.model_dump() | few | {"model": model}), tmp_path / "run")
        done(command("push", "run", "jane/few", "--merged"))
        assert b"library_name: mlx-peft" in hub.repositories["jane/few"].branches["main"]["README.md"]
        done(command("pull", "jane/few", "got"))
        expected, found = (load(tmp_path / name, "torch") for load, name in ((load_run, "run"), (load_model, "got")))
        assert found.base.quantization == expected.base.quantization
        assert relative(found.model.logits(images), expected.model.logits(images)) <= LOGITS

    def test_so_does_one_that_timm_has_no_words_for(self, hub, model, command, tmp_path):
        whole = load_model(model, "torch").base
        odd = replace(whole, architecture=whole.architecture.model_copy(update={"norm_eps": 1e-12}))
        write_model(tmp_path / "odd", base=odd, tensors=odd.tensors, exactly=True)
        done(command("push", "odd", "jane/odd"))
        card = hub.repositories["jane/odd"].branches["main"]["README.md"]
        assert b"library_name: mlx-peft" in card and b"mlx_peft:" not in card
        done(command("pull", "jane/odd", "got"))
        assert load_model(tmp_path / "got", "torch").base.architecture.norm_eps == 1e-12

    def test_a_second_push_is_a_new_commit_on_the_same_files(self, hub, run, command):
        first, second = (command("push", run / "adapter", "jane/digits").stdout for _ in range(2))
        assert first != second
        assert hub.repositories["jane/digits"].branches["main"].keys() == {
            ".gitattributes",
            *ADAPTER,
            SUMS,
            "README.md",
        }

    def test_a_branch_is_made_and_fetched(self, hub, run, command):
        done(command("push", run, "jane/digits", "--revision", "seed-0"))
        branches = hub.repositories["jane/digits"].branches
        assert branches["main"].keys() == {".gitattributes"}
        done(command("pull", "jane/digits", "got", "--revision", "seed-0"))

    def test_a_second_push_to_a_branch_follows_the_first(self, hub, run, command):
        first, second = (command("push", run, "jane/digits", "--revision", "seed-0").stdout for _ in range(2))
        assert first != second
        assert hub.repositories["jane/digits"].branches["main"].keys() == {".gitattributes"}

    def test_a_private_one_is_made_private(self, hub, run, command):
        done(command("push", run, "jane/secret", "--private"))
        assert hub.repositories["jane/secret"].private
        done(command("pull", "jane/secret", "got"))

    def test_the_environment_names_the_hub(self, hub, run, command, tmp_path):
        done(command("push", run, "jane/digits"))
        process = subprocess.run(
            [sys.executable, "-m", "torch_ref", "pull", "jane/digits", "elsewhere"],
            env=os.environ | {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"},
            capture_output=True, text=True,
        )  # fmt: skip
        assert process.returncode == 0, process.stderr
        assert (tmp_path / "elsewhere" / ADAPTER[1]).is_file()


@pytest.fixture(scope="module")
def based(run, experiment, tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("jane's-home")
    save_file(dict(load_run(run).base.tensors), folder / "base.safetensors")
    model = experiment.model.model_copy(update={"weights": str(folder / "base.safetensors")})
    mine = Experiment.model_validate(experiment.model_copy(update={"model": model}).model_dump())
    train(mine, folder / "run")
    return folder / "run", folder / "base.safetensors"


class TestABaseThatIsAFile:
    """Its path is nobody's business, and whoever has the file says where it is."""

    def test_its_path_is_not_sent(self, hub, based, command):
        pushed = command("push", based[0], "jane/digits")
        assert "its base is a file of yours, base.safetensors" in pushed.stderr
        for name, content in hub.repositories["jane/digits"].branches["main"].items():
            assert b"jane's-home" not in content, name

    def test_what_was_pulled_predicts_with_the_file_and_with_no_other(
        self, hub, based, command, image, tmp_path, monkeypatch
    ):
        done(command("push", based[0], "jane/digits"))
        done(command("pull", "jane/digits", "got"))
        naming = ("--model", "vit_tiny_patch16_224", "--weights")
        got = done(command("predict", "got", image, "--json", *naming, based[1]))
        assert json.loads(got.stdout) == json.loads(command("predict", based[0], image, "--json").stdout)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))  # as where nobody has opened the file
        said = failed(command("predict", "got", image))
        assert "was trained on base.safetensors, which is not there" in said
        assert "of the model vit_tiny_patch16_224 (--weights WEIGHTS)" in said
        assert "names its own model" in failed(
            command("predict", "got", image, "--model", "deit_tiny_patch16_224", "--weights", based[1])
        )
        other = dict(load_run(based[0]).base.tensors)
        save_file({name: tensor + 1 for name, tensor in other.items()}, tmp_path / "other.safetensors")
        assert "adapter for another base" in failed(command("predict", "got", image, *naming, "other.safetensors"))
