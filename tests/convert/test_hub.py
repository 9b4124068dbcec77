"""The hub: what is asked of it, and what its errors become."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants, errors

from convert.base import Base, load_base
from convert.hub import download
from mlx_peft.config.schema import Model
from mlx_peft.core.errors import UserError

NAME = "vit_base_patch16_clip_224.openai"
RESPONSE = SimpleNamespace(headers={}, request=None)

Changes = Callable[[tuple[str, ...]], list[str]]


def test_a_timm_name_is_loaded_from_its_repository(
    tiny: Callable[..., Base],
    saved: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    changes: Changes,
) -> None:
    old = tiny(NAME)
    asked = []

    def fetch(repository: str, filename: str) -> str:
        asked.append((repository, filename))
        return saved(old.tensors)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    base = load_base(Model(name=NAME, image_size=64, args={"depth": 3, "embed_dim": 24, "num_heads": 3}), 5, seed=0)
    assert asked == [(f"timm/{NAME}", "model.safetensors")]
    assert base.source == f"timm/{NAME}"
    (note,) = changes(base.notes)
    assert "QuickGELU" in note
    np.testing.assert_array_equal(base.tensors["norm.weight"], old.tensors["norm.weight"])


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.GatedRepoError("no", response=RESPONSE), "is gated: accept its terms at https://huggingface.co/timm/x"),
        (errors.RepositoryNotFoundError("no", response=RESPONSE), "shows no such repository"),
        (errors.EntryNotFoundError("no"), "no such file in https://huggingface.co/timm/x"),
        (
            errors.LocalEntryNotFoundError("no"),
            r"m of timm/x: the hub at https.* failed: .*not in the cache .*hf download timm/x m",
        ),
        (errors.HfHubHTTPError("teapot", response=RESPONSE), "m of timm/x: teapot"),
        (OSError(28, "No space left on device"), r"m of timm/x: \[Errno 28\] No space left"),
        (RuntimeError("the connection was reset"), "the hub at https.* failed: the connection was reset"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_of_the_hub_becomes_advice(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: str) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(UserError, match=message):
        download("timm/x", "m")


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
