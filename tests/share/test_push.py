"""What is not sent to the hub: places on this machine, and what ``push`` refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import timm
from by_hand import by_hand
from hub_answers import ADAPTER, changing, done, failed
from huggingface_hub import HfApi
from safetensors.numpy import load_file, save_file

from convert.adapters.peft import read_adapter, write_adapter
from convert.files import read_safetensors


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
