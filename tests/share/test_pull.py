"""What ``pull`` refuses to fetch from the hub."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from by_hand import by_hand
from hub_answers import ADAPTER, done, failed, left
from huggingface_hub import constants
from hypothesis import example, given
from hypothesis import strategies as st

from convert.repository import LARGEST, MOST, _allowed
from mlx_peft.artifacts.share import opened
from mlx_peft.core.errors import UserError


class TestWhatPullRefuses:
    @pytest.fixture
    def files(self, run) -> dict[str, bytes]:
        return {name: (run / "adapter" / name).read_bytes() for name in ADAPTER}

    def test_what_is_not_there(self, hub, command, tmp_path):
        assert "shows no such repository; if it is private or gated, log in" in failed(
            command("pull", "jane/nothing", "got")
        )
        assert not left(tmp_path)

    def test_a_private_one_to_somebody_else(self, hub, command, files, monkeypatch):
        hub.put("jane/digits", files, private=True)
        monkeypatch.delenv("HF_TOKEN")
        assert "shows no such repository; if it is private or gated, log in" in failed(
            command("pull", "jane/digits", "got")
        )

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
        assert f"should have 1 to {MOST} files, not {MOST + 2}" in failed(command("pull", "jane/digits", "got"))

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
        assert "adapter_model.safetensors of jane/digits" in failed(command("pull", "jane/digits", "new/place/got"))
        assert not left(tmp_path)
        hub.cut = None
        done(command("pull", "jane/digits", "got"))

    def test_a_hub_that_cannot_be_reached(self, hub, command, files, tmp_path, monkeypatch):
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
        assert "jane/digits: the hub at http://127.0.0.1:9 cannot be reached: " in failed(
            command("pull", "jane/digits", "got")
        )
        assert not left(tmp_path)

    def test_a_hub_that_falls_silent_after_its_list(self, hub, command, files, tmp_path):
        hub.put("jane/digits", files)
        hub.silent = "HEAD .*/resolve/"
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
