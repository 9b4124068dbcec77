"""Folders damaged at random are refused, or answer with finite logits; nothing else happens, and the others answer."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from banks import METHODS, SIDES, adapter, base_of, network, pixels
from faults.hostile import changed, pick, text
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from convert.adapters.description import METADATA
from convert.adapters.peft import CONFIG, WEIGHTS, write_adapter
from mlx_peft.core.errors import UserError
from mlx_peft.core.sums import SUMS


def bytes_changed(folder: Path, rng: np.random.Generator) -> None:
    file = folder / pick(rng, (WEIGHTS, WEIGHTS, CONFIG))
    data = bytearray(file.read_bytes())
    for _ in range(1 + int(rng.integers(8))):
        if not data:  # a cut took the rest of a small file
            break
        at = int(rng.integers(len(data)))
        match pick(rng, ("flip", "cut", "insert", "header")):
            case "flip":
                data[at] ^= 1 << int(rng.integers(8))
            case "cut":
                del data[at : at + pick(rng, (1, 4, 1000))]
            case "insert":
                data[at:at] = rng.bytes(pick(rng, (1, 8)))
            case "header":
                data[: 1 + at % 8] = rng.bytes(1 + at % 8)
    file.write_bytes(data)


def described_otherwise(folder: Path, rng: np.random.Generator) -> None:
    with safe_open(folder / WEIGHTS, "numpy") as opened:
        said = text(changed(json.loads(opened.metadata()[METADATA]), rng), rng)
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, {METADATA: said})


def tensors_changed(folder: Path, rng: np.random.Generator) -> None:
    """Others, of other shapes, or with other numbers; as PEFT would leave them or as we do."""
    tensors = load_file(folder / WEIGHTS)
    with safe_open(folder / WEIGHTS, "numpy") as opened:
        metadata = opened.metadata() if rng.random() < 0.5 else {}
    metadata.pop("digest", None)
    name = pick(rng, sorted(tensors))
    array = tensors[name]
    tensors[name] = pick(
        rng,
        [
            array.T.copy(),
            array[:1].copy(),
            np.zeros((0, *array.shape[1:]), array.dtype),
            np.full_like(array, np.nan),
            np.full_like(array, 1e38),
            array.astype(np.float16),
            array.astype(np.int32),
            array.reshape(-1),
        ],
    )
    if rng.random() < 0.3:
        tensors[pick(rng, ("more", "base_model.model.more", f"{name}.more"))] = tensors.pop(name)
    save_file(tensors, folder / WEIGHTS, metadata)


def config_changed(folder: Path, rng: np.random.Generator) -> None:
    (folder / CONFIG).write_text(text(changed(json.loads((folder / CONFIG).read_text()), rng), rng))
    (folder / SUMS).unlink()
    if rng.random() < 0.5:
        save_file(load_file(folder / WEIGHTS), folder / WEIGHTS)  # PEFT's: the configuration alone says what it is


KINDS = (bytes_changed, described_otherwise, described_otherwise, tensors_changed, config_changed)


@pytest.mark.parametrize("count", [80, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_damaged_folder_is_refused_or_answers_and_the_others_answer_as_before(count, tmp_path: Path):
    rng, base, images = np.random.default_rng(count), base_of(), pixels(2)
    methods = [method for several in METHODS.values() for method in several]
    for number in range(count):
        folder = tmp_path / str(number // 100) / f"bad{number}"
        write_adapter(folder, adapter(base, pick(rng, methods), number))
        pick(rng, KINDS)(folder, rng)
    refused = 0
    for group in sorted(tmp_path.iterdir()):
        write_adapter(group / "good", adapter(base, methods[1], 0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bank = SIDES["torch"].load_adapters(network("torch"), group)
        before = bank.logits(images[:1], "good")[0]
        for folder in sorted(group.glob("bad*")):
            try:
                found = bank.predict(images, ["good", folder.name])
                assert np.isfinite(found[1].logits).all()
            except UserError as error:
                assert folder.name in str(error)
                refused += 1
            assert np.array_equal(bank.logits(images[:1], "good")[0], before)
    assert refused > count // 2
