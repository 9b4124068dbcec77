"""Files of ours in folders that others use too: what is theirs stays as it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlx_peft.core.errors import UserError
from mlx_peft.core.own import SUBFOLDER, fresh, open_own, own_folder, user_folder
from mlx_peft.core.writing import replace_own, write_whole
from mlx_peft.training.run import RunFolder

THEIRS = "years of work"


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    path = tmp_path / "thesis.txt"
    path.write_text(THEIRS)
    return path


def test_a_file_is_written_whole_though_a_link_has_the_name_of_what_is_beside_it(tmp_path: Path, theirs: Path) -> None:
    (tmp_path / ".result.json.tmp").symlink_to(theirs)
    write_whole(tmp_path / "result.json", b"{}")
    assert theirs.read_text() == THEIRS
    assert {path.name for path in tmp_path.iterdir()} == {"result.json", "thesis.txt"}


def test_a_lock_neither_empties_a_file_nor_follows_a_link(tmp_path: Path, theirs: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    (run.path / ".lock").write_text(THEIRS)
    with run.locked(), pytest.raises(UserError, match="in use by another process"), run.locked():
        pass
    assert (run.path / ".lock").read_text() == THEIRS
    (run.path / ".lock").unlink()
    (run.path / ".lock").symlink_to(theirs)
    with pytest.raises(UserError, match="cannot be written"), run.locked():
        pass
    assert theirs.read_text() == THEIRS


def test_a_file_of_our_own_is_known_by_how_it_begins(tmp_path: Path, theirs: Path) -> None:
    path = tmp_path / "count"
    for content in (b"", b"ours 1"):
        path.write_bytes(content)
        os.close(open_own(path, b"ours"))
        assert path.read_bytes() == content
    path.write_bytes(b"our")
    with pytest.raises(OSError, match="somebody else's"):
        open_own(path, b"ours")
    path.unlink()
    (tmp_path / "empty").touch()
    os.link(tmp_path / "empty", path)
    with pytest.raises(OSError, match="somebody else's"):
        open_own(path, b"ours")


def test_a_new_file_takes_the_place_of_a_link_and_not_of_what_is_behind_it(tmp_path: Path, theirs: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(theirs)
    with fresh(link) as file:
        file.write(b"new")
    assert (link.is_symlink(), link.read_bytes(), theirs.read_text()) == (False, b"new", THEIRS)
    link.unlink()
    link.symlink_to(theirs)
    replace_own(link, b"newer")
    assert (link.is_symlink(), link.read_bytes(), theirs.read_text()) == (False, b"newer", THEIRS)


def test_what_is_kept_lies_in_a_folder_of_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_folder("checked", tmp_path / "shared") == tmp_path / "shared" / SUBFOLDER / "checked"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert own_folder("checked", None) == user_folder() / "checked" == tmp_path / "caches" / "mlx-peft" / "checked"
    (tmp_path / "disk").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "moved"))
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "mlx-peft").symlink_to(tmp_path / "disk")  # by the user: the disk is larger there
    assert own_folder("decoded", None).resolve() == tmp_path / "disk" / "decoded"
