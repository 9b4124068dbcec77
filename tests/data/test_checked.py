"""What was checked on an earlier opening is not decoded again: by path, size and times, and trusted only as long."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.data import cached, checked, dataset, open_dataset

COUNT = 12


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve images of two classes, of which the last two pairs are the same picture twice."""
    for number in range(COUNT):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = np.random.default_rng(min(number, 9)).integers(0, 256, (6, 7, 3), np.uint8)
        Image.fromarray(small).resize((40, 30), Image.Resampling.BICUBIC).save(path)
    return tmp_path / "images"


def data(root: Path, **options: object) -> schema.Data:
    own = {"cache": {"folder": root.parent / "cache"}, "split": {"val": 0.25, "seed": 1}}
    return schema.Data.model_validate({"name": "folder", "root": root} | own | options)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are decoded."""
    names: list[str] = []
    whole = dataset.read_image

    def counted(path: Path) -> np.ndarray:
        names.append(path.name)
        return whole(path)

    monkeypatch.setattr(dataset, "read_image", counted)
    return names


def files(root: Path) -> list[Path]:
    return [path for path in (root.parent / "cache").rglob("*") if path.is_file()]


def broken(root: Path, number: int) -> Path:
    """An image whose content is damaged, as a fault of the disk would: its size and times stay."""
    path = root / "ab"[number % 2] / f"{number}.png"
    before = path.stat()
    content = path.read_bytes()
    path.write_bytes(content[:60] + bytes(len(content) - 60))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return path


@pytest.mark.parametrize("options", [{}, {"unreadable": "skip"}], ids=["refuse", "skip"])
def test_what_was_checked_is_not_decoded_again(root: Path, decoded: list[str], options: dict[str, str]) -> None:
    before = sorted(path.relative_to(root) for path in root.rglob("*"))
    first = open_dataset(data(root, **options))
    assert len(decoded) == COUNT
    again = open_dataset(data(root, **options))
    assert len(decoded) == COUNT
    assert {n: s.sha256 for n, s in again.splits.items()} == {n: s.sha256 for n, s in first.splits.items()}
    assert sorted(path.relative_to(root) for path in root.rglob("*")) == before, "nothing is written beside the images"


def test_with_a_full_cache_a_later_run_decodes_nothing_at_all(root: Path, decoded: list[str]) -> None:
    config = data(root, cache={"gigabytes": 1, "folder": root.parent / "cache"})
    for _ in range(2):
        opened = cached(open_dataset(config), config)
        for split in opened.splits.values():
            for row in range(split.size):
                split.images.read(row)
    assert len(decoded) == 2 * COUNT  # checked, and read into the cache


def test_near_duplicates_are_found_without_decoding_again(root: Path, decoded: list[str]) -> None:
    config = data(root, split={"val": 0.25, "group_by": "duplicates"})
    first = open_dataset(config)
    assert len(decoded) == 2 * COUNT
    again = open_dataset(config)
    assert len(decoded) == 2 * COUNT
    assert again.notes == first.notes
    assert "12 images in 10 groups, never parted" in first.notes
    assert again.train.sha256 == first.train.sha256


def test_a_file_that_changed_or_is_new_is_checked_and_the_others_are_not(root: Path, decoded: list[str]) -> None:
    open_dataset(data(root))
    Image.new("RGB", (9, 9)).save(root / "a" / "4.png")
    Image.new("RGB", (9, 9)).save(root / "a" / "new.png")
    decoded.clear()
    open_dataset(data(root))
    assert sorted(decoded) == ["4.png", "new.png"]


def test_a_file_of_the_same_size_and_time_that_was_written_again_is_checked(root: Path) -> None:
    open_dataset(data(root))
    path = broken(root, 4)
    with pytest.raises(UserError, match=rf"{path}: not a readable image"):
        open_dataset(data(root))


def test_what_is_broken_is_not_remembered_and_the_others_are(root: Path, decoded: list[str]) -> None:
    broken(root, 4)
    for expected in (COUNT, 1):
        decoded.clear()
        with pytest.raises(UserError, match=r"4\.png: not a readable image"):
            open_dataset(data(root))
        assert len(decoded) == expected
    decoded.clear()
    opened = open_dataset(data(root, unreadable="skip"))
    assert decoded == ["4.png"]
    assert "left out, unreadable: 1 (a/4.png)" in opened.notes


def test_an_image_that_cannot_be_read_after_all_ends_the_trust(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that ``unreadable: skip``, which the message advises, finds it on the next opening."""
    opened = open_dataset(data(root))
    assert files(root)
    with monkeypatch.context() as patch:
        patch.setattr(checked, "file_mark", lambda path: pytest.fail("not asked for by reading"))
        opened.train.images.read(0)
        name = opened.train.images.identifiers[0]
        stays = os.stat(root / name)
        broken(root, int(Path(name).stem))
        with pytest.raises(UserError, match=r"set data\.unreadable: skip"):
            opened.train.images.read(0)
    assert not files(root)
    # Even where the file system tells nothing of the change.
    patched = os.stat
    monkeypatch.setattr(
        os, "stat", lambda path, **options: stays if str(path).endswith(name) else patched(path, **options)
    )
    assert name in str(open_dataset(data(root, unreadable="skip")).notes)


def test_every_command_that_opens_the_set_shares_what_one_has_checked(root: Path, decoded: list[str]) -> None:
    """A check of every image too; which itself reads all of them, since that is what it is for."""
    from typer.testing import CliRunner

    from mlx_peft.cli.app import app

    arguments = [
        "data",
        "check",
        "folder",
        f"root={root}",
        f"cache.folder={root.parent}/cache",
        "split.val=0",
        "--sheet",
    ]
    for _ in range(2):
        decoded.clear()
        done = CliRunner().invoke(app, [*arguments, str(root.parent / "sheet.png")], obj="mlx")
        assert done.exit_code == 0, done.output
        assert set(decoded) == {f"{number}.png" for number in range(COUNT)}
    decoded.clear()
    open_dataset(data(root))
    assert not decoded


def test_settings_that_change_no_file_share_a_memory(root: Path, decoded: list[str]) -> None:
    open_dataset(data(root))
    decoded.clear()
    open_dataset(data(root, batch_size=3, augment={"flip": True}, split={"val": 0.5}, threads=1))
    assert not decoded


@pytest.mark.parametrize("damage", ["empty", "short", "flipped", "longer", "other rules", "a folder", "a link"])
def test_a_damaged_memory_counts_as_nothing(
    root: Path, decoded: list[str], damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_dataset(data(root))
    (path,) = files(root)
    whole = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage == "a link":
        (root.parent / "theirs").write_bytes(whole)
        path.symlink_to(root.parent / "theirs")
    else:
        path.write_bytes({
            "empty": b"", "short": whole[:-1], "longer": whole + b"x", "other rules": whole,
            "flipped": whole[:60] + bytes([whole[60] ^ 1]) + whole[61:],
        }[damage])  # fmt: skip
    if damage == "other rules":
        monkeypatch.setattr(checked, "rules", lambda: b"other" * 6 + b"ok")
    decoded.clear()
    open_dataset(data(root))
    assert len(decoded) == COUNT
    if damage == "a link":
        assert (root.parent / "theirs").read_bytes() == whole


def test_where_nothing_can_be_kept_sets_are_opened_all_the_same(
    root: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (root.parent / "cache").write_text("a file")
    for _ in range(2):
        open_dataset(data(root))
    assert len(decoded) == 2 * COUNT
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    open_dataset(data(root, cache={}))
    assert (root.parent / "cache").read_text() == "a file"


def test_an_image_takes_eight_bytes_and_no_name_is_kept(root: Path) -> None:
    open_dataset(data(root))
    (path,) = files(root)
    content = path.read_bytes()
    assert len(content) < 8 * COUNT + 100
    assert b"png" not in content
    assert path.parent == root.parent / "cache" / "mlx-peft-cache" / "checked"


def test_threads_may_open_the_same_set_at_once(root: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: open_dataset(data(root)).train.sha256, range(8)))
    assert len(set(opened)) == 1
