"""Processes that make rows, and what may happen to them or to their owner."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from data.odd_rows import SIDE, Odd
from data.pipelines import BICUBIC
from hanging import HUNG
from PIL import Image

from mlx_peft.core.errors import UserError
from mlx_peft.data import ArrayImages, crew
from mlx_peft.data.dataset import FileImages
from mlx_peft.data.filling import Chunk
from mlx_peft.data.rows import Evaluated
from mlx_peft.data.worker import Lent


@pytest.fixture(scope="module", autouse=True)
def none_stays() -> Iterator[None]:
    yield
    crew._crews.clear()


def odd(what: str, at: int = 3) -> tuple[Chunk, Sequence[np.ndarray]]:
    """Six rows of which one is odd, and their places."""
    some = np.arange(6)
    images = ArrayImages.whole(np.zeros((6, 2, 2, 3), np.uint8), "none")
    return Chunk(Odd(what, at), images, some, some, 0 * some, False), list(np.zeros((6, SIDE, SIDE, 3), np.uint8))


def test_a_process_that_was_killed_is_told_of_in_one_message_and_another_takes_its_place() -> None:
    hand = crew.crew(1, (SIDE, SIDE))
    with pytest.raises(UserError, match=r"was ended by SIGKILL: .*fewer data\.threads.*data\.workers: threads"):
        hand.fill(*odd("killed"))
    chunk, out = odd("killed", at=99)
    assert hand.fill(chunk, out) == [None] * 6
    assert [place[0, 0, 0] for place in out] == list(range(6))


def test_where_the_shared_memory_has_no_room_left_that_is_said() -> None:
    ended = subprocess.Popen([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGBUS)"])
    ended.wait()
    assert "was ended by SIGBUS: there was no room left for the memory that it shares" in str(crew._gone(ended))  # type: ignore[arg-type]
    ended.returncode = -77
    assert "was ended by signal 77: " in str(crew._gone(ended))  # type: ignore[arg-type]


def test_relative_paths_are_of_the_folder_that_their_owner_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand = crew.crew(1, (SIDE, SIDE))
    for level, name in enumerate(("one", "other")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (SIDE, SIDE), (level, level, level)).save(tmp_path / name / "image.png")
        monkeypatch.chdir(tmp_path / name)
        images, first, out = FileImages(Path("."), ("image.png",)), np.arange(1), np.zeros((1, SIDE, SIDE, 3), np.uint8)
        chunk = Chunk(Evaluated(BICUBIC, SIDE), images, first, first, first, False)
        assert hand.fill(chunk, list(out)) == [None]
        assert (out == level).all()


def test_what_else_goes_wrong_is_told_with_its_place_and_its_status(capfd: pytest.CaptureFixture[str]) -> None:
    hand = crew.crew(1, (SIDE, SIDE))
    with pytest.raises(RuntimeError, match=r"(?s)ZeroDivisionError\('no such thing'\).*in wrong"):
        hand.fill(*odd("wrong"))
    with pytest.raises(UserError, match=r"ended with status 3"):
        hand.fill(*odd("left"))
    assert hand.fill(*odd("talkative")) == [None] * 6
    assert "printed\nwritten\n" in capfd.readouterr().err


def test_a_process_that_cannot_be_started_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(crew.subprocess, "Popen", refused)
    with pytest.raises(UserError, match=r"data\.workers: .* cannot be started \(Resource temporarily unavailable\)"):
        crew.Crew(1, crew.ROOM).fill(*odd("talkative"))


def test_memory_is_shared_out_and_given_back() -> None:
    hand = crew.crew(2, (SIDE, SIDE))
    assert hand.fill(*odd("hungry")) == [None] * 6
    budget = hand.workers[0]._budget
    assert 0 < budget.most <= budget.total
    with budget.decoding(budget.total, 0):
        pass  # nothing is kept by anybody


def test_what_is_not_ones_own_is_asked_for_and_given_back() -> None:
    said: list[int] = []
    budget = Lent(10, 100, said.append, lambda share: said.append(-share))
    with budget.one_image():
        for peak, kept in ((10, 5), (500, 30), (20, 20), (3, 3)):
            with budget.decoding(peak, kept):
                pass
    assert said == [100, -70, -30, 20, -20]
    assert sum(said) == 0


LEFT = """
import sys, time
from pathlib import Path
import numpy as np
from data.pipelines import BICUBIC, data
from mlx_peft.config import schema
from mlx_peft.data import ArrayImages, Split, crew, train_batches
pixels = np.random.default_rng(1).integers(0, 256, (400, 64, 64, 3), np.uint8)
split = Split("train", ArrayImages.whole(pixels, "train"), np.arange(400) % 3)
config = data("random_resized", threads=2).model_copy(update={"workers": "processes"})
batches = train_batches(split, config, BICUBIC, 64, seed=0, epoch=0)
next(batches)
print([one.process.pid for one in crew._crews[0].workers if one.process], flush=True)
time.sleep(1000)
"""


def there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1] if Path("/proc").exists() else True


def test_of_an_owner_that_was_killed_nothing_is_left() -> None:
    shared = Path("/dev/shm")
    before = set(os.listdir(shared)) if shared.exists() else set()
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    environment = os.environ | {"PYTHONPATH": path}
    owner = subprocess.Popen([sys.executable, "-c", LEFT], stdout=subprocess.PIPE, text=True, env=environment)
    assert owner.stdout is not None
    with owner:
        found = json.loads(owner.stdout.readline())
        owner.kill()
    assert found
    until = time.monotonic() + HUNG
    while any(map(there, found)) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(map(there, found))
    after = set(os.listdir(shared)) if shared.exists() else set()
    assert not [name for name in after - before if "mlx" in name or "psm_" in name or "pymp" in name]


def test_a_process_starts_without_what_only_its_owner_needs() -> None:
    script = "import sys, mlx_peft.data.worker; print(*{name.partition('.')[0] for name in sys.modules})"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"mlx", "torch", "scipy", "typer", "pyarrow", "yaml", "huggingface_hub"} & set(found)
    assert "mlx_peft" in found
