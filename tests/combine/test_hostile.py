"""Folders that were damaged, or made to do harm, are refused by name or combined as what they say; nothing is left."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bank.test_fuzzed import KINDS
from banks import ARGS, METHODS, SIZE, adapter, base_of
from faults.hostile import pick

import mlx_peft as mp
from convert.adapters.peft import read_adapter, write_adapter
from mlx_peft.config.methods import IA3, AdaptFormer, LoRA
from mlx_peft.config.schema import Model
from mlx_peft.core.errors import UserError

SEEDS, ROUND = 120, 40
"""In rounds, each a test."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Two adapters of each method whose adapters can be combined, in pairs."""
    place, pairs = tmp_path_factory.mktemp("sound"), []
    for method in (methods[0] for methods in METHODS.values() if methods[0].uncombined is None):
        pair = [place / f"{method.name}-{seed}" for seed in range(2)]
        for seed, folder in enumerate(pair):
            write_adapter(folder, adapter(base_of(), method, seed, classes=5))
        pairs.append(pair)
    return pairs


@pytest.mark.parametrize("first", range(0, SEEDS, ROUND))
def test_random_damage_is_refused_or_makes_a_sound_adapter(first, sound, tmp_path):
    refused = 0
    for seed in range(first, first + ROUND):
        rng = np.random.default_rng(seed)
        good, other = sound[seed % len(sound)]
        bad = tmp_path / str(seed)
        shutil.copytree(other, bad)
        pick(rng, KINDS)(bad, rng)
        out = tmp_path / "out"
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                mp.combine({good: 0.5, bad: 0.5}, out, head=good.name, base_weights=None)
        except UserError:
            refused += 1
            assert not out.exists(), seed
        else:
            assert all(np.isfinite(tensor).all() for tensor in read_adapter(out).tensors.values())
            shutil.rmtree(out)
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], seed
    assert 0 < refused < ROUND  # some damage shows nowhere, such as another name of the model


@pytest.mark.parametrize("method", [LoRA(rank=2), IA3(), AdaptFormer(bottleneck=4)], ids=lambda method: method.name)
@pytest.mark.parametrize("how", [None, "svd"])
@pytest.mark.filterwarnings("error")
def test_weights_that_no_number_can_hold_are_refused_without_a_warning_of_numpys(written, method, how, tmp_path):
    if how == "svd" and method.name != "lora":
        how = None
    given = {written("a", method): 1e300, written("b", method, 1): -1e300}
    with pytest.raises(UserError, match=r"the weights are too large \(a=1e\+300, b=-1e\+300\)"):
        mp.combine(given, tmp_path / "out", how=how, head="a")
    assert not (tmp_path / "out").exists()


def test_finite_factors_whose_product_no_number_can_hold_are_refused(written, tmp_path):
    """An SVD halves the exponent: factors of 1e19 each, and what attention makes of two such layers is not finite."""
    given = {written("a", LoRA(rank=2)): 1e38, written("b", LoRA(rank=2), 1): 1.0}
    with pytest.raises(UserError, match=r"the weights are too large \(a=1e\+38, b=1\)"):
        mp.combine(given, tmp_path / "out", how="svd", head="a")
    assert not (tmp_path / "out").exists()
    mp.combine(dict(zip(given, (1e6, 1.0), strict=True)), tmp_path / "out", how="svd", head="a")


def test_a_folder_whose_name_is_not_utf_8_is_named_as_it_can_be_written(written, tmp_path):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    written("a", LoRA(rank=2)).rename(odd)
    for head in (odd.name, r"caf\xe9", str(odd)):
        made = mp.combine({odd: 0.5, written("b", LoRA(rank=2), 1): 1}, tmp_path / "out", head=head)
        origin = read_adapter(tmp_path / "out").origin
        assert origin == made.adapter.origin and origin.head == origin.adapters[0].name == r"caf\xe9"


def test_of_weights_whose_file_s_name_is_not_utf_8_an_adapter_is_written_all_the_same(written, tmp_path):
    model = Model(name="vit_tiny_patch16_224", weights=f"{tmp_path}/caf\udce9.safetensors", image_size=SIZE, args=ARGS)
    own = replace(read_adapter(written("a", LoRA(rank=2))), model=model)
    write_adapter(tmp_path / "b", own)
    found = read_adapter(tmp_path / "b")
    assert found.model.weights == found.source == r"caf\xe9.safetensors"
