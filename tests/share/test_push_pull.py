"""Sent to the hub and fetched from it: a stand-in on this machine answers as the hub does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import peft
import pytest
import timm
from by_hand import by_hand
from comparing import relative
from huggingface_hub import HfApi, constants
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file, save_file

from convert.adapters.peft import read_adapter, write_adapter
from convert.base import load_base
from convert.files import read_safetensors
from convert.repository import LARGEST, MOST, _allowed
from convert.timm.write import write_model
from mlx_peft.artifacts.load import load_model, load_run
from mlx_peft.artifacts.merge import merge_run
from mlx_peft.artifacts.share import opened
from mlx_peft.config.schema import Experiment, Model
from mlx_peft.core.errors import UserError
from mlx_peft.core.sums import SUMS
from mlx_peft.training.train import train

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
LOGITS = 1e-5  # relative, float32: a merged weight is rounded once more


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 32, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A whole model's folder."""
    args = {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}
    base = load_base(Model(name="vit_tiny_patch16_224", weights="none", image_size=32, args=args), 3, seed=0)
    write_model(tmp_path / "model", base=base, tensors=base.tensors)
    return tmp_path / "model"


def done(result: Any) -> Any:
    """What a command that did its work gave."""
    assert result.exit_code == 0, result.output
    return result


def failed(result: Any) -> str:
    """What a command that refused said; its status is 2 and no traceback is there."""
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.stderr.split())


def left(folder: Path) -> set[str]:
    """What lies in a folder besides the hub's cache and the test's own files."""
    return {path.name for path in folder.iterdir()} - {"cache", "image.png"}


def changing(hub: Any) -> list[str]:
    """The requests that would make or change something."""
    return [request for request in hub.requests if not request.startswith(("GET", "HEAD", "POST /api/validate-yaml"))]


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

    def test_what_was_pulled_predicts_with_the_file_and_with_no_other(self, hub, based, command, image, tmp_path):
        done(command("push", based[0], "jane/digits"))
        done(command("pull", "jane/digits", "got"))
        naming = ("--model", "vit_tiny_patch16_224", "--weights")
        got = done(command("predict", "got", image, "--json", *naming, based[1]))
        assert json.loads(got.stdout) == json.loads(command("predict", based[0], image, "--json").stdout)
        said = failed(command("predict", "got", image))
        assert "was trained on base.safetensors, which is not there" in said
        assert "--model vit_tiny_patch16_224 --weights FILE" in said
        assert "names its own model" in failed(
            command("predict", "got", image, "--model", "deit_tiny_patch16_224", "--weights", based[1])
        )
        other = dict(load_run(based[0]).base.tensors)
        save_file({name: tensor + 1 for name, tensor in other.items()}, tmp_path / "other.safetensors")
        assert "adapter for another base" in failed(command("predict", "got", image, *naming, "other.safetensors"))


class TestPlacesOnThisMachine:
    @pytest.mark.parametrize("place", ["/home/jane/models/vit", "C:\\Users\\jane\\vit", "~/secret/vit", "jane/vit"])
    def test_are_not_sent_with_an_adapter_that_peft_wrote(self, hub, command, tmp_path, place):
        base = timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=24, num_heads=3, num_classes=3)
        config = peft.LoraConfig(r=2, target_modules=["qkv"], modules_to_save=["head"], base_model_name_or_path=place)
        tuned = peft.get_peft_model(base, config)
        tuned.peft_config["default"].base_model_name_or_path = place
        tuned.save_pretrained(tmp_path / "theirs")
        (tmp_path / "jane" / "vit").mkdir(parents=True)  # a relative path that is there
        done(command("push", "theirs", "lab/theirs"))
        sent = hub.repositories["lab/theirs"].branches["main"]
        assert json.loads(sent["adapter_config.json"])["base_model_name_or_path"] == "vit"
        assert b"jane" not in b"".join(sent.values()) and b"secret" not in b"".join(sent.values())
        assert json.loads((tmp_path / "theirs" / "adapter_config.json").read_text())["base_model_name_or_path"] == place

    def test_are_not_sent_with_a_models_configuration(self, hub, model, command):
        config = json.loads((model / "config.json").read_text())
        names = {"label_names": ["/a", "b", "c"], "comment": "by jane, on her host", "_name_or_path": "/home/jane/vit"}
        config["pretrained_cfg"] |= {"file": "/home/jane/base.safetensors", "origin_url": "/home/jane/vit"}
        by_hand(model / "config.json", json.dumps(config | names))
        said = done(command("push", model, "lab/model")).stderr
        assert "config.json: left out: _name_or_path, comment, pretrained_cfg.file" in said
        sent = json.loads(hub.repositories["lab/model"].branches["main"]["config.json"])
        assert sent.keys() == {*config, "label_names"}
        assert sent["pretrained_cfg"].keys() == config["pretrained_cfg"].keys() - {"file"}
        assert sent["pretrained_cfg"]["origin_url"] == "vit"
        assert sent["label_names"] == ["/a", "b", "c"] and "jane" not in json.dumps(sent)

    def test_are_not_sent_in_the_metadata_of_another_tool(self, hub, model, run, command, tmp_path):
        plain = load_file(run / "adapter" / ADAPTER[1])
        facts = {"format": "pt", "trained_by": "jane", "dir": "/home/jane"}
        shutil.copytree(run / "adapter", tmp_path / "theirs")
        save_file(plain, tmp_path / "theirs" / ADAPTER[1], facts)
        save_file(load_file(model / "model.safetensors"), model / "model.safetensors", facts)
        for folder, name in (("theirs", ADAPTER[1]), (model, "model.safetensors")):
            said = done(command("push", folder, f"lab/{Path(folder).name}")).stderr
            assert f"{name}: left out of its metadata: dir, trained_by" in said
            sent = hub.repositories[f"lab/{Path(folder).name}"].branches["main"][name]
            (tmp_path / "sent.safetensors").write_bytes(sent)
            assert b"jane" not in sent and b'"format":"pt"' in sent
            for key, tensor in load_file(tmp_path / folder / name).items():
                np.testing.assert_array_equal(load_file(tmp_path / "sent.safetensors")[key], tensor)

    def test_are_not_sent_with_an_adapter_of_ours_that_names_no_model(self, hub, run, command, tmp_path):
        adapter = replace(read_adapter(run / "adapter"), model=None)
        write_adapter(tmp_path / "ours", adapter)
        path = tmp_path / "ours" / ADAPTER[1]
        facts = read_safetensors(path)[1]
        described = json.loads(facts["mlx_peft"]) | {"source": "/home/jane/base.safetensors"}
        save_file(load_file(path), path, {"mlx_peft": json.dumps(described)})
        done(command("push", "ours", "lab/ours"))
        assert b"jane" not in b"".join(hub.repositories["lab/ours"].branches["main"].values())


class TestWhatPushRefuses:
    def test_nobody_who_is_not_logged_in(self, hub, run, command, monkeypatch):
        monkeypatch.delenv("HF_TOKEN")
        assert "hf auth login, or set HF_TOKEN" in failed(command("push", run, "jane/digits"))
        assert not hub.repositories

    def test_a_token_that_the_hub_does_not_know(self, hub, run, command, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
        said = failed(command("push", run, "jane/digits"))
        assert "does not know the token" in said
        assert "hf_xxx" not in said

    def test_a_name_that_is_somebody_elses(self, hub, run, command):
        assert "is the owner's name right" in failed(command("push", run, "google/digits"))

    @pytest.mark.parametrize("name", ["digits", "jane/", "jane/di gits", "jane/../x", "a/b/c", "jane/digits@main"])
    def test_what_is_no_name(self, hub, run, command, name):
        assert "write OWNER/NAME" in failed(command("push", run, name))
        assert not hub.requests

    @pytest.mark.parametrize("options", [[], ["--revision", "seed-0"]])
    def test_a_repository_with_other_files_before_a_branch_is_made_of_them(self, hub, run, command, options):
        hub.put("jane/digits", {"config.json": b"{}", "README.md": b"#"})
        said = failed(command("push", run, "jane/digits", *options))
        assert "holds other files: config.json; choose another name" in said
        assert not changing(hub)

    def test_a_public_repository_for_what_should_be_private(self, hub, run, command):
        hub.put("jane/digits", {})
        asked = command("push", run, "jane/digits", "--private", "--revision", "seed-0")
        assert "exists and is public" in failed(asked)
        assert not changing(hub)

    def test_what_someone_else_committed_meanwhile(self, hub, run, command, monkeypatch):
        theirs = hub.put("jane/digits", {})
        create = HfApi.create_commit

        def late(*args: Any, **options: Any) -> Any:
            theirs.commits["main"] = "f" * 40
            return create(*args, **options)

        monkeypatch.setattr(HfApi, "create_commit", late)
        assert "someone else changed the repository meanwhile" in failed(command("push", run, "jane/digits"))
        assert theirs.branches["main"].keys() == {".gitattributes"}

    def test_an_interruption_leaves_the_repository_as_it_was(self, hub, run, command):
        hub.cut = "POST commit jane/digits"
        assert f"jane/digits: the hub at {hub.address} failed" in failed(command("push", run, "jane/digits"))
        assert hub.repositories["jane/digits"].branches["main"].keys() == {".gitattributes"}
        hub.cut = None
        done(command("push", run, "jane/digits"))

    def test_a_folder_with_nothing_to_send(self, hub, command, tmp_path):
        (tmp_path / "empty").mkdir()
        assert "holds no adapter" in failed(command("push", "empty", "jane/digits"))
        assert not hub.requests

    def test_a_damaged_adapter(self, hub, run, command, tmp_path):
        folder = tmp_path / "damaged"
        folder.mkdir()
        for name in ADAPTER:
            (folder / name).write_bytes((run / "adapter" / name).read_bytes()[:-100])
        failed(command("push", "damaged", "jane/digits"))
        assert not hub.requests


class TestWhatPullRefuses:
    @pytest.fixture
    def files(self, run) -> dict[str, bytes]:
        return {name: (run / "adapter" / name).read_bytes() for name in ADAPTER}

    def test_what_is_not_there(self, hub, command, tmp_path):
        assert "shows no such repository; if it is private, log in" in failed(command("pull", "jane/nothing", "got"))
        assert not left(tmp_path)

    def test_a_private_one_to_somebody_else(self, hub, command, files, monkeypatch):
        hub.put("jane/digits", files, private=True)
        monkeypatch.delenv("HF_TOKEN")
        assert "shows no such repository; if it is private, log in" in failed(command("pull", "jane/digits", "got"))

    def test_a_branch_that_is_not_there(self, hub, command, files):
        hub.put("jane/digits", files)
        said = failed(command("pull", "jane/digits", "got", "--revision", "v2"))
        assert "jane/digits at v2: the repository has no such branch, tag or commit" in said

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("pytorch_model.bin", "only .safetensors, .json, .md, .txt files are fetched, not pytorch_model.bin"),
            ("training_args.pt", "not training_args.pt"),
            ("modeling.py", "not modeling.py"),
            ("LICENSE", "not LICENSE"),
            ("../escaped.json", "only files outside of folders are fetched, not '../escaped.json'"),
            ("/etc/escaped.json", "not '/etc/escaped.json'"),
            ("checkpoint/adapter_config.json", "not 'checkpoint/adapter_config.json'"),
            (".hidden.json", "not '.hidden.json'"),
        ],
    )
    def test_a_file_that_it_should_not_have_by_its_name(self, hub, command, files, tmp_path, name, reason):
        hub.put("jane/digits", files | {name: b"x"})
        assert reason in failed(command("pull", "jane/digits", "got"))
        assert not left(tmp_path)
        assert not [request for request in hub.requests if "/resolve/" in request]

    @pytest.mark.parametrize("size", [10**12, -1, None])
    def test_a_file_of_an_impossible_length(self, hub, command, files, tmp_path, size):
        hub.put("jane/digits", files).sizes["adapter_config.json"] = size
        assert "too large, or their length is not stated" in failed(command("pull", "jane/digits", "got"))
        assert not [request for request in hub.requests if "/resolve/" in request]

    def test_more_files_than_it_needs(self, hub, command, files):
        hub.put("jane/digits", files | {f"{index}.txt": b"x" for index in range(MOST)})
        assert f"1 to {MOST} were expected" in failed(command("pull", "jane/digits", "got"))

    def test_a_file_that_is_not_the_one_that_is_listed(self, hub, command, files, tmp_path):
        hub.put("jane/digits", files).sizes["adapter_config.json"] = 5
        assert "not the file that the repository lists" in failed(command("pull", "jane/digits", "got"))
        assert not left(tmp_path)

    @pytest.mark.parametrize("name", ADAPTER)
    def test_an_adapter_that_is_damaged(self, hub, command, files, tmp_path, name):
        hub.put("jane/digits", files | {name: files[name][:-20]})
        failed(command("pull", "jane/digits", "got"))
        assert not left(tmp_path)

    def test_what_is_neither_an_adapter_nor_a_model(self, hub, command, tmp_path):
        hub.put("jane/data", {"README.md": b"# data"})
        assert "jane/data holds neither an adapter" in failed(command("pull", "jane/data", "got"))
        assert not left(tmp_path)

    @pytest.mark.parametrize("claim", ["abc", None, [1], 1e300])
    def test_the_classes_are_counted_where_a_configuration_gives_no_number(self, model, claim):
        config = json.loads((model / "config.json").read_text())
        by_hand(model / "config.json", json.dumps(config | {"num_classes": claim}))
        opened(model, "jane/model")

    @pytest.mark.parametrize("claim", [10**12, -5, 4])
    def test_another_number_of_classes_than_the_heads(self, model, claim):
        config = json.loads((model / "config.json").read_text())
        by_hand(model / "config.json", json.dumps(config | {"num_classes": claim}))
        with pytest.raises(UserError, match=f"num_classes is {claim}, and the head has 3 rows"):
            opened(model, "jane/model")

    def test_a_connection_that_breaks_leaves_nothing(self, hub, command, files, tmp_path):
        hub.put("jane/digits", files)
        hub.cut = "GET .*/resolve/.*/adapter_model"
        assert "adapter_model.safetensors of jane/digits" in failed(command("pull", "jane/digits", "got"))
        assert not left(tmp_path)
        hub.cut = None
        done(command("pull", "jane/digits", "got"))

    def test_a_hub_that_cannot_be_reached(self, hub, command, files, tmp_path, monkeypatch):
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
        assert "jane/digits: the hub at http://127.0.0.1:9 failed: " in failed(command("pull", "jane/digits", "got"))
        assert not left(tmp_path)

    def test_a_hub_that_falls_silent_after_its_list(self, hub, command, files, tmp_path):
        hub.put("jane/digits", files)
        hub.silent = "HEAD"
        said = failed(command("pull", "jane/digits", "got"))
        assert f"adapter_config.json of jane/digits: the hub at {hub.address} failed: " in said
        assert not left(tmp_path)

    def test_a_folder_that_is_there_before_the_hub_is_asked(self, hub, command, files, tmp_path):
        hub.put("jane/digits", files)
        (tmp_path / "got").mkdir()
        (tmp_path / "got" / "mine.txt").write_text("mine")
        assert "already there" in failed(command("pull", "jane/digits", "got"))
        assert not hub.requests


NAMES = st.builds(str.__add__, st.text("aB0._-/\\ \n:~é", max_size=8), st.sampled_from(["", *LARGEST, ".bin", "/"]))


@given(NAMES, st.integers(-5, 10**11) | st.none())
@example("a.safetensors\n", 5)
@example("a.json/", 5)
@example("..json", 5)
@example("C:x.json", 5)
def test_whatever_a_file_is_called_it_is_refused_or_stays_in_the_folder(name: str, size: int | None) -> None:
    sibling = SimpleNamespace(rfilename=name, size=size, lfs=None)
    try:
        (allowed,) = _allowed([sibling], "jane/x")
    except UserError:
        return
    path = Path("/folder", allowed.rfilename)
    assert os.path.normpath(path.parent) == "/folder" == os.path.dirname(os.path.normpath(path))
    assert size is not None and 0 <= size <= LARGEST[path.suffix]
