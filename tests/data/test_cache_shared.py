"""A decoded cache beside others: files of a user, links, other runs and threads, and kills."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from data.caches import COUNT, data, entries, epoch
from hanging import HUNG

from mlx_peft.core.errors import UserError
from mlx_peft.data import cached, open_dataset
from mlx_peft.data.cache import COUNT as COUNT_FILE
from mlx_peft.data.cache import COUNTED, HEADER, STALE, Cache


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
