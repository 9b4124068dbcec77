"""What needs more memory than there is ends before any of it is made, with what would need less."""

from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from convert.adapters.description import METADATA
from convert.adapters.peft import WEIGHTS
from convert.base import load_base
from mlx_peft.adaptation import room
from mlx_peft.adaptation.prefix import Prefix
from mlx_peft.artifacts import examine
from mlx_peft.artifacts.load import load_run
from mlx_peft.core import memory
from mlx_peft.core.border import Device
from mlx_peft.core.errors import UserError
from mlx_peft.training.prefix import planned
from mlx_peft.training.train import train

MIB = 2**20


def changed(experiment: Any, section: str, **update: Any) -> Any:
    return experiment.model_copy(update={section: getattr(experiment, section).model_copy(update=update)})


def refused(engine: SimpleNamespace, experiment: Any) -> str:
    with pytest.raises(UserError) as caught:
        train(experiment, engine.out)
    assert not engine.out.exists()
    return str(caught.value)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 64 MiB."""
    monkeypatch.setattr(memory, "available", lambda: 64 * MIB)


def test_a_run_that_cannot_fit_is_refused_before_its_folder_is_made(engine: SimpleNamespace, small: None) -> None:
    wide = changed(engine.experiment(), "model", args={"patch_size": 4, "embed_dim": 4096, "depth": 1, "num_heads": 1})
    assert "(embed_dim 4,096, depth 1, 5 tokens) needs at least 769 MiB of memory" in refused(engine, wide)


def test_of_a_batch_that_is_too_large_it_is_said_how_many_parts_would_fit(
    engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available", lambda: MIB // 4)
    deep = changed(engine.experiment(), "model", image_size=64)
    message = refused(engine, deep)
    assert "257 tokens) in batches of 8 needs at least" in message
    found = re.search(r"; by the same count train\.accumulate=(\d+) would fit$", message)
    assert found
    train(changed(deep, "train", accumulate=int(found[1])), engine.out)


def test_a_batch_holds_no_more_images_than_there_are(engine: SimpleNamespace, small: None) -> None:
    """A batch of 44 images, whatever it is called, fits."""
    experiment = changed(engine.experiment(), "data", batch_size=2**20)
    architecture = load_base(experiment.model, 3, 0).architecture
    device = Device(None, forms_attention=True)
    room.check_training(experiment, architecture, None, num_classes=3, images=44, device=device)
    with pytest.raises(UserError, match="in batches of 1048576 needs at least"):
        room.check_training(experiment, architecture, None, num_classes=3, images=2**20, device=device)


def test_of_several_processes_each_needs_room_for_its_share(engine: SimpleNamespace, small: None) -> None:
    experiment = changed(engine.experiment(), "data", batch_size=2**20)
    architecture = load_base(experiment.model, 3, 0).architecture
    whole = {"num_classes": 3, "images": 2**20, "device": Device(None, forms_attention=True)}
    room.check_training(experiment, architecture, None, **whole, processes=2**14)
    with pytest.raises(UserError, match=r"by the same count train\.accumulate=\d+ would fit"):
        room.check_training(experiment, architecture, None, **whole, processes=2)


def test_attention_counts_where_it_is_held_whole(engine: SimpleNamespace, small: None) -> None:
    experiment = changed(engine.experiment(), "model", image_size=256)
    architecture = load_base(experiment.model, 3, 0).architecture.model_copy(update={"depth": 2})

    def check(device: Device) -> None:
        room.check_training(experiment, architecture, None, num_classes=3, images=44, device=device)

    check(Device(None, forms_attention=False))
    with pytest.raises(UserError, match=r"attention \d+ MiB"):
        check(Device(None, forms_attention=True))
    check(Device(10**9, forms_attention=True))  # of memory of its own


def test_evaluating_asks_too(engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    train(engine.experiment(), engine.out)
    monkeypatch.setattr(memory, "available", lambda: 10_000)
    with pytest.raises(UserError, match="needs at least 1 MiB of memory"):
        examine.examine_splits(engine.out, ["test"])


def test_features_are_kept_where_there_is_memory_for_them(
    engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available", lambda: 1000)
    notes: list[str] = []
    model = SimpleNamespace(prefix=Prefix(2, (1, 8), "the head"))
    progress = SimpleNamespace(note=notes.append)
    assert planned(model, engine.experiment(), engine.dataset(), progress) is None
    assert "more than there is (1 MiB): they are computed in every epoch" in notes[0]


CLAIMS = {
    "vpt": {"method": {"name": "vpt", "tokens": 65536}},
    "adaptformer": {"method": {"name": "adaptformer", "bottleneck": 65536}},
    "fact": {"method": {"name": "fact", "rank": 4}},
    "lora": {"method": {"name": "lora", "rank": 65536}},
    "full": {"method": {"name": "full"}},
    "wide": {"model": {"args": {"patch_size": 4, "embed_dim": 65536, "depth": 512, "num_heads": 64}}},
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_what_an_adapter_claims_is_compared_with_what_it_holds(
    engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, claim: str
) -> None:
    """On a machine that could hold all of it: no more is made than the file has."""
    train(engine.experiment(), engine.out)
    place = engine.out / "adapter"
    (engine.out / "config.yaml").unlink()  # an adapter without its run
    rewrite(place / WEIGHTS, CLAIMS[claim])
    monkeypatch.setattr(memory, "available", lambda: 2**60)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"does not fit|is above the"):
        load_run(place)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * MIB


def rewrite(path: Path, claim: dict[str, Any]) -> None:
    """The same tensors under another description."""
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        description = json.loads(file.metadata()[METADATA])
    for section, values in claim.items():
        old = description[section] if section == "model" else {}
        description[section] = old | values
    save_file(load_file(path), path, {METADATA: json.dumps(description)})
