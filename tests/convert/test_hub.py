"""The hub: what is asked of it, and what its errors become."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
from hub_stand_in import Hub, standing_in
from huggingface_hub import constants, errors

from convert.base import Base, load_base
from convert.hub import download
from convert.layouts.layout import Asked
from convert.named import open_named
from convert.repository import fetch, upload
from mlx_peft.config.schema import Data, Model
from mlx_peft.core import reach
from mlx_peft.core.errors import UserError
from mlx_peft.data.sets.parquet import Repository, read_hub

NAME = "vit_base_patch16_clip_224.openai"
RESPONSE = SimpleNamespace(headers={}, request=None, status_code=418)
MISSING = SimpleNamespace(headers={}, request=None, status_code=404)

Changes = Callable[[tuple[str, ...]], list[str]]


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that can be reached, whatever becomes of what it is asked."""
    monkeypatch.setattr(reach, "silence", lambda: None)


@contextmanager
def port(backlog: int | None) -> Iterator[str]:
    """The address of a port of this machine that takes connections and answers none, or, for None, refuses them."""
    with socket.create_server(("127.0.0.1", 0), backlog=backlog or 1) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        if backlog is None:
            listening.close()
        yield address


UNREACHABLE = [
    pytest.param(8, "no answer within 0.2 s|timed out", id="silent"),
    pytest.param(None, "refused", id="refusing"),
]


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int | None], str]]:
    """Has the hub be such a port, with an empty cache, and little patience; each wait of its client's is an error."""

    def wait(seconds: float) -> None:
        raise AssertionError(f"waits for {seconds} s")

    monkeypatch.setattr(reach, "PATIENCE", 0.2)
    monkeypatch.setattr(time, "sleep", wait)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_" + "s" * 34)
    with ExitStack() as stack:

        def at(backlog: int | None) -> str:
            address = stack.enter_context(port(backlog))
            monkeypatch.setattr(constants, "ENDPOINT", address)
            return address

        yield at


@pytest.mark.parametrize(("backlog", "reason"), UNREACHABLE)
def test_a_hub_that_cannot_be_reached_is_told_at_once(
    backlog: int | None, reason: str, alone: Callable[[int | None], str], tmp_path: Path
) -> None:
    """Whatever is asked for: one question, which has seconds, and none of the client's own tries."""
    address = alone(backlog)
    asked: list[Callable[[], object]] = [
        lambda: download("timm/x", "m"),
        lambda: fetch("jane/x", tmp_path / "new" / "out", lambda folder: None),
        lambda: upload("jane/x", {"a.json": b"{}"}),
        lambda: read_hub(Repository("jane/x", None, None), Data(name="hf:jane/x", download=True)),
    ]
    for ask in asked:
        with pytest.raises(UserError, match=f"the hub at {address} cannot be reached: .*({reason})"):
            ask()
    assert not (tmp_path / "new").exists()


def test_what_the_cache_has_is_taken_where_the_hub_cannot_be_reached(
    alone: Callable[[int | None], str], tmp_path: Path
) -> None:
    folder = tmp_path / "cache" / "models--timm--x"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (folder / "snapshots" / ("0" * 40) / "m").write_text("weights")
    alone(None)
    assert download("timm/x", "m").read_text() == "weights"


def test_nobody_waits_longer_than_five_seconds() -> None:
    assert reach.PATIENCE < 5


@pytest.mark.usefixtures("answering")
def test_a_timm_name_is_loaded_from_its_repository(
    tiny: Callable[..., Base],
    saved: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    changes: Changes,
) -> None:
    old = tiny(NAME)
    asked = []

    def fetch(repository: str, filename: str, **_: object) -> str:
        asked.append((repository, filename))
        return saved(old.tensors)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    base = load_base(Model(name=NAME, image_size=64, args={"depth": 3, "embed_dim": 24, "num_heads": 3}), None, seed=0)
    assert asked == [(f"timm/{NAME}", "model.safetensors")]
    assert base.source == f"timm/{NAME}"
    (note,) = changes(base.notes)
    assert "QuickGELU" in note
    np.testing.assert_array_equal(base.tensors["norm.weight"], old.tensors["norm.weight"])


@pytest.mark.usefixtures("answering")
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.GatedRepoError("no", response=RESPONSE), "is gated: .*sk for.* at https://huggingface.co/timm/x"),
        (errors.RepositoryNotFoundError("no", response=RESPONSE), "shows no such repository"),
        (errors.EntryNotFoundError("no"), "no such file in https://huggingface.co/timm/x"),
        (
            errors.LocalEntryNotFoundError("no"),
            r"m of timm/x: the hub at https.* failed: .*not in the cache .*hf download timm/x m",
        ),
        (
            errors.HfHubHTTPError("Client error '404 Not Found' for url", response=MISSING),
            "m of timm/x: the hub shows nothing of that name; if it is private, log in",
        ),
        (errors.HfHubHTTPError("teapot", response=RESPONSE), "m of timm/x: teapot"),
        (OSError(28, "No space left on device"), r"m of timm/x: \[Errno 28\] No space left"),
        (RuntimeError("the connection was reset"), "the hub at https.* failed: the connection was reset"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_of_the_hub_becomes_advice(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: str, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(UserError, match=message):
        download("timm/x", "m")


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with standing_in(monkeypatch, tmp_path) as hub:
        yield hub


@pytest.mark.parametrize("gated", ["GatedRepo", ""], ids=["named", "plain"])
def test_of_a_gated_repository_it_is_said_how_to_ask(gated: str, stand_in: Hub, tmp_path: Path) -> None:
    """As somebody who is logged in, whom the hub has not given access yet; its older answers name no reason."""
    stand_in.put("meta/dinov3", {"model.safetensors": b"weights"}).gated = gated
    asked: list[Callable[[], object]] = [
        lambda: download("meta/dinov3", "model.safetensors"),
        lambda: fetch("meta/dinov3", tmp_path / "out", lambda folder: None),
        lambda: open_named("meta/dinov3", Path("meta/dinov3"), Asked()),
    ]
    for ask in asked:
        with pytest.raises(UserError, match=r"has no access. Ask for it at http.*/meta/dinov3 .*fine-grained token"):
            ask()
    assert not (tmp_path / "out").exists()


def test_without_a_login_a_gated_repository_says_to_log_in(stand_in: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in.put("meta/dinov3", {"model.safetensors": b"weights"}).gated = "GatedRepo"
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match=r"is gated: ask for access at http.*/meta/dinov3 .*hf auth login, or set HF_T"):
        download("meta/dinov3", "model.safetensors")


def test_offline_is_respected_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        download("timm/x", "m")


def test_a_name_without_weights_on_the_hub_says_which_tags_have_some() -> None:
    with pytest.raises(UserError, match=r"no weights for 'vit_giant_patch14_224' \(other tags: none\)"):
        load_base(Model(name="vit_giant_patch14_224"), 5, seed=0)
    with pytest.raises(UserError, match=r"no weights for '.*in1k_ijepa' \(other tags: in22k_ijepa\)"):
        load_base(Model(name="vit_huge_patch14_gap_224.in1k_ijepa"), 5, seed=0)
