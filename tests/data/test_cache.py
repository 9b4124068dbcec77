"""The decoded cache: the same pixels, decoded once; shared, limited, and never half there."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hanging import HUNG
from PIL import Image

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.data import Dataset, cache, cached, dataset, open_dataset, train_batches
from mlx_peft.data.cache import COUNT as COUNT_FILE
from mlx_peft.data.cache import COUNTED, HEADER, STALE, Cache, shrunk
from mlx_peft.vit.architecture import Preprocessing

COUNT = 24


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (8, 9, 3), np.uint8)
        Image.fromarray(pixels).resize((60 + number, 90 - number), Image.Resampling.BICUBIC).save(path)
    return tmp_path / "images"


def data(root: Path, **options: object) -> schema.Data:
    cache = {"gigabytes": 1, "folder": root.parent / "cache"} | options
    augment = schema.Augment(crop="random_resized", flip=True)
    split = schema.Split(val=0)
    return schema.Data(name="folder", root=root, batch_size=8, split=split, augment=augment, cache=cache)


def epoch(
    opened: Dataset, config: schema.Data, number: int = 0, interpolation: Literal["bilinear", "bicubic"] = "bicubic"
) -> list[bytes]:
    preprocessing = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation=interpolation)
    batches = train_batches(opened.train, config, preprocessing, 32, seed=0, epoch=number)
    return [batch.images.tobytes() for batch in batches]


def entries(root: Path) -> list[Path]:
    return sorted((root.parent / "cache" / "mlx-peft-cache" / "decoded").glob("*/*.rgb"))


def test_later_epochs_decode_nothing_and_show_the_same_pixels(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = data(root)
    plain = open_dataset(config)
    expected = [epoch(plain, config, number) for number in range(3)]
    opened = cached(plain, config)
    assert epoch(opened, config, 0) == expected[0]
    assert len(entries(root)) == COUNT

    def refuse(path: object) -> None:
        raise AssertionError(f"{path} is decoded again")

    monkeypatch.setattr(dataset, "read_image", refuse)
    assert epoch(opened, config, 1) == expected[1]
    assert epoch(cached(plain, config), config, 2) == expected[2]  # another run
    assert opened.train.sha256 == plain.train.sha256


def test_whole_images_that_are_mapped_read_only_are_resized_too(root: Path) -> None:
    config = data(root)
    whole = config.model_copy(update={"augment": schema.Augment(crop="random_resized", scale=(1, 1), ratio=(0.2, 5))})
    plain = open_dataset(config)
    opened = cached(plain, config)
    for interpolation in ("bilinear", "bicubic"):
        expected = epoch(plain, whole, 0, interpolation)
        assert epoch(opened, whole, 0, interpolation) == expected
        assert epoch(opened, whole, 0, interpolation) == expected


def test_a_file_that_changed_is_decoded_again_by_the_next_run(root: Path) -> None:
    config = data(root)
    plain = open_dataset(config)
    opened = cached(plain, config)
    path = root / opened.train.images.identifiers[3]
    before = [opened.train.images.read(3) for _ in range(2)][1]
    Image.new("RGB", (before.shape[1], before.shape[0]), "red").save(path)
    assert np.array_equal(opened.train.images.read(3), before)  # one run sees one set of images
    after = cached(plain, config).train.images.read(3)
    assert np.abs(after.astype(int) - (255, 0, 0)).max() < 8


@pytest.fixture
def maps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each file that is mapped."""
    made: list[int] = []
    original = cache._map

    def counted(file: int) -> np.ndarray:
        made.append(file)
        return original(file)

    monkeypatch.setattr(cache, "_map", counted)
    return made


def test_past_the_most_that_stay_mapped_images_are_read_too(
    root: Path, monkeypatch: pytest.MonkeyPatch, maps: list[int]
) -> None:
    gc.collect()  # caches of other tests no longer count
    monkeypatch.setattr(cache, "MAPPED", COUNT // 2)
    config = data(root).model_copy(update={"threads": 1})
    plain = open_dataset(config)
    opened = cached(plain, config)
    assert [epoch(opened, config, number) for number in range(3)] == [epoch(plain, config, n) for n in range(3)]
    assert len(maps) == COUNT // 2


def test_caches_of_one_process_share_what_may_stay_mapped(
    root: Path, monkeypatch: pytest.MonkeyPatch, maps: list[int]
) -> None:
    gc.collect()
    monkeypatch.setattr(cache, "MAPPED", COUNT // 2)
    config = data(root)
    plain = open_dataset(config)
    first, second = cached(plain, config), cached(plain, config)
    for opened in (first, first, second):
        for number in range(COUNT):
            opened.train.images.read(number)
    assert len(maps) == COUNT // 2
    del first, opened
    gc.collect()
    for number in range(COUNT):
        second.train.images.read(number)
    assert len(maps) == COUNT


@pytest.mark.parametrize("mapped", [True, False])
def test_an_entry_is_read_only_and_the_same_mapped_or_not(tmp_path: Path, mapped: bool) -> None:
    image = np.random.default_rng(0).integers(0, 256, (70, 50, 3), np.uint8)
    Cache(tmp_path, 10**6, None).put("ab" * 20, image)
    found = Cache(tmp_path, 10**6, None).get("ab" * 20, mapped=mapped)
    assert found is not None
    assert np.array_equal(found, image)
    assert not found.flags.writeable


def test_what_was_kept_by_other_rules_of_reading_does_not_count(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = data(root)
    epoch(cached(open_dataset(config), config), config, 0)
    monkeypatch.setattr(cache, "RULES", 0)
    epoch(cached(open_dataset(config), config), config, 0)
    assert len(entries(root)) == 2 * COUNT


def test_an_entry_that_arrives_in_pieces_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).integers(0, 256, (70, 50, 3), np.uint8)
    Cache(tmp_path, 10**6, None).put("ab" * 20, image)
    whole = os.readv
    monkeypatch.setattr(os, "readv", lambda file, buffers: whole(file, [buffers[0][:999]]))
    found = Cache(tmp_path, 10**6, None).get("ab" * 20)
    assert found is not None
    assert np.array_equal(found, image)


def test_an_entry_that_ends_early_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Cache(tmp_path, 10**6, None).put("ab" * 20, np.zeros((4, 4, 3), np.uint8))
    monkeypatch.setattr(os, "readv", lambda file, buffers: 0)
    assert Cache(tmp_path, 10**6, None).get("ab" * 20) is None


def test_a_limited_side_shrinks_larger_images_alike_in_every_epoch_and_where_nothing_is_kept(root: Path) -> None:
    config = data(root, side=40)
    opened = cached(open_dataset(config), config)
    first = epoch(opened, config)
    assert [min(opened.train.images.read(n).shape[:2]) for n in range(COUNT)] == [40] * COUNT
    assert epoch(opened, config) == first
    full = data(root, side=40, gigabytes=1e-6, folder=root.parent / "other")
    assert epoch(cached(open_dataset(full), full), full) == first
    assert not list((root.parent / "other").rglob("*.rgb*"))


@pytest.mark.parametrize(("size", "side", "expected"), [((30, 60), 20, (20, 40)), ((61, 30), 20, (40, 20))])
def test_shrinking_keeps_the_shape(size: tuple[int, int], side: int, expected: tuple[int, int]) -> None:
    image = np.zeros((*size, 3), np.uint8)
    assert shrunk(image, side).shape[:2] == expected
    assert shrunk(image, None) is image
    assert shrunk(image, 30) is image


def test_no_more_is_kept_than_the_limit(root: Path) -> None:
    sizes = 60 * 90 * 3
    config = data(root, gigabytes=5 * sizes / 1e9)
    opened = cached(open_dataset(config), config)
    first = epoch(opened, config)
    kept = entries(root)
    assert 2 <= len(kept) <= 5
    assert sum(path.stat().st_size for path in kept) <= 5 * sizes
    assert epoch(opened, config) == first
    assert entries(root) == kept


def test_room_is_made_on_opening_by_what_was_not_read_for_longest(tmp_path: Path) -> None:
    image = np.zeros((10, 10, 3), np.uint8)
    size = HEADER.size + image.nbytes
    cache = Cache(tmp_path, 20 * size, None)
    keys = [f"{number:040x}" for number in range(20)]
    for age, key in enumerate(keys):
        cache.put(key, image)
        os.utime(cache._place(key), (1e9 - age, 1e9 - age))
    assert Cache(tmp_path, 99 * size, None).get(keys[-1]) is not None  # read again: the youngest now
    again = Cache(tmp_path, 20 * size, None)
    gone = [key for key in keys if again.get(key) is None]
    assert gone == keys[-3:-1]  # down to nine tenths: the longest unread
    again.put("ff" * 20, image)
    assert again.get("ff" * 20) is not None


@pytest.mark.parametrize("most", [0, COUNT])
@pytest.mark.parametrize("damage", ["empty", "short", "header", "pixels", "longer"])
def test_a_damaged_entry_is_decoded_anew_and_replaced(
    root: Path, monkeypatch: pytest.MonkeyPatch, damage: str, most: int
) -> None:
    """Whether it would stay mapped or be read."""
    monkeypatch.setattr(cache, "MAPPED", most)
    config = data(root)
    plain = open_dataset(config)
    expected = epoch(cached(plain, config), config)
    path = entries(root)[0]
    whole = path.read_bytes()
    broken = {
        "empty": b"", "short": whole[:-1], "header": b"XXXX" + whole[4:], "longer": whole + b"x",
        "pixels": whole[:-1] + bytes([whole[-1] ^ 1]),
    }[damage]  # fmt: skip
    path.write_bytes(broken)
    assert epoch(cached(plain, config), config) == expected
    assert path.read_bytes() == whole


def test_a_full_disk_ends_the_keeping_and_not_the_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = data(root)
    plain = open_dataset(config)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert epoch(cached(plain, config), config) == epoch(plain, config)
    assert not list((root.parent / "cache").rglob("*.rgb*"))


def test_a_folder_that_cannot_be_used_is_refused(root: Path) -> None:
    (root.parent / "cache").write_text("")
    with pytest.raises(UserError, match=r"data\.cache\.folder: .*cache cannot be used"):
        cached(open_dataset(data(root)), data(root))


def test_where_there_are_no_image_files_a_note_says_that_nothing_is_cached(root: Path) -> None:
    config = schema.Data(name="digits", cache={"gigabytes": 1, "folder": root.parent / "cache"})
    plain = open_dataset(config)
    opened = cached(plain, config)
    assert opened.notes == (*plain.notes, "data.cache: not used, since digits has no image files of their own")
    assert opened.train is plain.train
    assert not (root.parent / "cache").exists()
    assert cached(open_dataset(data(root)), data(root)).notes == ()


def test_a_file_that_is_gone_is_named(root: Path) -> None:
    opened = cached(open_dataset(data(root)), data(root))
    (root / opened.train.images.identifiers[0]).unlink()
    with pytest.raises(UserError, match=r"a/.*\.jpg: cannot be read"):
        opened.train.images.read(0)


def test_what_a_killed_run_left_unfinished_is_swept_away_later(tmp_path: Path) -> None:
    (tmp_path / "ab").mkdir()
    names = ("-1.part", ".rgb-1-2.part", ".rgb-3-4.part")  # the first as earlier versions had it
    old, older, new = (tmp_path / "ab" / f"{'ab' * 20}{name}" for name in names)
    for path in (old, older, new):
        path.write_bytes(b"half")
    for path in (old, older):
        os.utime(path, (time.time() - STALE - 9,) * 2)
    Cache(tmp_path, 100, None)
    assert (old.exists(), older.exists(), new.exists()) == (False, False, True)


@pytest.mark.parametrize("how", ["file", "link", "hard link", "dangling", "pipe"])
@pytest.mark.parametrize("name", ["bytes", COUNT_FILE])
def test_a_file_of_the_users_is_never_written_to(root: Path, how: str, name: str) -> None:
    """Neither in the folder that is named nor in the cache's own, nor through a link: it is used beside, or refused."""
    folder = root.parent / "cache"
    own = folder / "mlx-peft-cache" / "decoded"
    own.mkdir(parents=True)
    theirs = root.parent / "thesis.txt"
    if how != "dangling":
        theirs.write_text("years of work")
    for place in (folder / name, own / name):
        if how == "file":
            place.write_text("years of work")
        elif how == "pipe":
            os.mkfifo(place)
        else:
            (os.link if how == "hard link" else os.symlink)(theirs, place)
    if name == COUNT_FILE:
        reason = "there is a link, and none is followed" if how in ("link", "dangling") else ""
        with pytest.raises(UserError, match=rf"data\.cache\.folder: .*cannot be used \(.*{reason}"):
            cached(open_dataset(data(root)), data(root))
    else:
        config = data(root)
        opened = cached(open_dataset(config), config)
        epoch(opened, config)
        assert len(entries(root)) == COUNT
    assert theirs.exists() == (how != "dangling")
    for place in (theirs, folder / name, own / name):
        assert how in ("dangling", "pipe") or place.read_text() == "years of work"


def test_links_in_the_place_of_the_caches_folders_are_not_followed(root: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    folder = root.parent / "cache"
    for place in (folder / "mlx-peft-cache", folder / "mlx-peft-cache" / "decoded"):
        place.parent.mkdir(exist_ok=True)
        place.symlink_to(theirs)
        with pytest.raises(UserError, match=r"data\.cache\.folder: .*none is followed"):
            cached(open_dataset(data(root)), data(root))
        place.unlink()
    for shard in range(256):
        (folder / "mlx-peft-cache" / "decoded").mkdir(exist_ok=True)
        (folder / "mlx-peft-cache" / "decoded" / f"{shard:02x}").symlink_to(theirs)
    config = data(root)
    assert epoch(cached(open_dataset(config), config), config) == epoch(open_dataset(config), config)
    assert not list(theirs.iterdir())


def test_a_link_in_the_place_of_an_entry_is_not_followed(tmp_path: Path) -> None:
    """Neither read, which a pipe behind it could stop, nor are the times of what is behind it changed."""
    key, other = "ab" * 20, "cd" * 20
    image = np.zeros((4, 4, 3), np.uint8)
    cache = Cache(tmp_path, 10**6, None)
    cache.put(key, image)
    cache._place(other).parent.mkdir()
    cache._place(other).symlink_to(cache._place(key))
    assert Cache(tmp_path, 10**6, None).get(other) is None
    cache._place(other).unlink()
    os.mkfifo(cache._place(other))
    assert Cache(tmp_path, 10**6, None).get(other) is None
    cache.put(other, image)
    assert np.array_equal(Cache(tmp_path, 10**6, None).get(other), image)


def test_the_count_says_what_it_is(tmp_path: Path) -> None:
    Cache(tmp_path, 10**6, None).put("ab" * 20, np.zeros((4, 4, 3), np.uint8))
    assert (tmp_path / COUNT_FILE).read_bytes() == COUNTED + b"%016d\n" % (HEADER.size + 48)


def test_files_that_are_not_the_caches_are_left_alone(tmp_path: Path) -> None:
    """However long ago they were read, and however much room is wanted."""
    key = "ab" * 20
    theirs = [
        "downloads/big.iso.part", f"downloads/{key}.rgb", "ab/mine.rgb", "ab/mine-1.part", f"cd/{key}.rgb",
        f"ab/{key}.rgb.old", f"ab/{key}.part", f"ab/{key.upper()}.rgb", f"{key}.rgb", f"ab/{key}-1.part/x",
    ]  # fmt: skip
    for name in [*theirs, f"ab/{key}.rgb"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(2000))
        os.utime(path, (1, 1))
    os.utime(tmp_path / "ab" / f"{key}-1.part", (1, 1))
    Cache(tmp_path, 1000, None)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {*theirs, COUNT_FILE}


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError])
def test_an_entry_that_another_run_deletes_while_it_is_read_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[OSError]
) -> None:
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    Cache(tmp_path, 10**6, None).put("ab" * 20, image)

    def gone(path: str) -> None:
        raise error(path)

    monkeypatch.setattr(os, "utime", gone)
    found = Cache(tmp_path, 10**6, None).get("ab" * 20)
    assert found is not None
    assert np.array_equal(found, image)


LIVES = """
import random, sys
from pathlib import Path
import numpy as np
from killing import begin, die_at, killed
from mlx_peft.data.cache import Cache

folder, limit, chance = Path(sys.argv[1]), int(sys.argv[2]), random.Random(0)

def fill(seed, event):
    cache, rng = Cache(folder, limit, None), np.random.default_rng(seed)
    die_at(event)
    while True:
        number = int(rng.integers(60))
        image = np.full((40 + number, 50, 3), number, np.uint8)
        key = f"{number:02x}" * 20
        found = cache.get(key)
        if found is None:
            cache.put(key, image)
        else:
            assert np.array_equal(found, image), number

def start(seed):
    event = chance.randrange(20_000)
    return begin(lambda: fill(seed, event))

sharing = [start(seed) for seed in range(2)]
for seed in range(2, 12):
    assert killed(sharing[seed % 2])
    sharing[seed % 2] = start(seed)
    if seed == 6:
        for path in list(folder.glob("*/*.rgb"))[:20]:
            path.unlink(missing_ok=True)  # so that there is something to write again; a new life tidies up too
assert all([killed(child) for child in sharing])
"""


def test_runs_that_share_a_cache_and_are_killed_leave_whole_entries_within_the_limit(tmp_path: Path) -> None:
    """Lives of two processes that fill and read one cache, each ended by SIGKILL somewhere."""
    limit = 200_000
    command = [sys.executable, "-c", LIVES, str(tmp_path), str(limit)]
    path = os.pathsep.join(
        [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    )  # of killing
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=HUNG)
    assert done.returncode == 0, done.stderr
    found = sorted(tmp_path.glob("*/*.rgb"))
    assert found
    assert sum(path.stat().st_size for path in found) <= limit
    cache = Cache(tmp_path, 2 * limit, None)
    for path in found:
        image = cache.get(path.stem)
        assert image is not None, path
        assert (image == int(path.stem[:2], 16)).all()


def test_threads_share_a_cache(root: Path) -> None:
    config = data(root)
    opened = cached(open_dataset(config), config)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(opened.train.images.read, list(range(COUNT)) * 6))
    plain = open_dataset(config).train.images
    assert all(np.array_equal(image, plain.read(n % COUNT)) for n, image in enumerate(found))
    assert len(entries(root)) == COUNT
