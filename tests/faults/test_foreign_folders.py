"""Folders of transformers whose files contradict each other, or are not understood."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from by_hand import by_hand
from faults.foreign_checkpoints import BASE, TRANSFORMERS, folder, many, refused
from hypothesis import assume, given
from hypothesis import strategies as st

from convert.base import whole
from convert.files import write_json, write_safetensors
from convert.layouts.layout import Asked
from convert.open import open_path
from mlx_peft.core.errors import UserError


def test_the_folder_that_is_damaged_here_is_whole(tmp_path: Path) -> None:
    found = whole(open_path(folder(tmp_path / "hf", *TRANSFORMERS), Asked()))
    for name, tensor in BASE.tensors.items():
        np.testing.assert_array_equal(found.tensors[name], tensor)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "model_type: 'bert' is not a supported ViT"),
        ({"model_type": "vitt"}, "did you mean 'vit'"),
        ({"architectures": ["ViTForMaskedImageModeling"]}, "'ViTForMaskedImageModeling' is not supported"),
        ({"architectures": ["Dinov2Model"]}, "'Dinov2Model' is not supported with model_type 'vit'"),
        ({"hidden_act": "relu"}, "hidden_act: 'relu' is not supported"),
        ({"num_channels": 1}, "only images of three channels"),
        ({"image_size": [32, 48]}, "image_size: only squares"),
        ({"image_size": -1}, "image_size: only squares"),
        ({"hidden_size": "24"}, "hidden_size: '24' is not understood"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers: should be a number above 0"),
        ({"num_attention_heads": 5}, "not a multiple of num_heads 5"),
        ({"num_hidden_layers": 3}, "missing: .*blocks.2"),
        ({"num_hidden_layers": 1}, "left over: .*blocks.1"),
        ({"intermediate_size": 97}, "of another shape: .*fc1"),
        ({"layer_norm_eps": "small"}, "norm_eps"),
    ],
)
def test_a_configuration_that_contradicts_the_tensors_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config, processor, tensors = TRANSFORMERS
    found = refused(folder(tmp_path / "hf", config | changes, processor, tensors))
    assert re.search(message, found), found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_processor_type": "LevitImageProcessor"}, "'LevitImageProcessor' is not supported"),
        ({"do_normalize": False}, "do_normalize: false is not supported"),
        ({"rescale_factor": 1.0}, "rescale_factor: only 1/255"),
        ({"resample": 1}, "resample: only 2"),
        ({"size": {"height": 32, "width": 48}}, "size: only squares"),
        ({"size": "big"}, "size: should be a number or a section of keys and values, not 'big'"),
        ({"image_mean": [0.5, 0.5]}, "mean"),
        ({"image_mean": None}, "lacks image_mean"),
    ],
)
def test_a_processor_that_is_not_understood_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    config, processor, tensors = TRANSFORMERS
    assert message in refused(folder(tmp_path / "hf", config, processor | changes, tensors))


VALUES = (
    st.none() | st.booleans() | st.integers(-2, 2**70) | st.floats() | st.text(max_size=3) | st.lists(st.integers())
)


@many
@given(changes=st.dictionaries(st.sampled_from(sorted(TRANSFORMERS[0])), VALUES, min_size=1, max_size=3))
def test_any_configuration_is_understood_or_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    config, processor, tensors = TRANSFORMERS
    path = folder(tmp_path / "hf", config | changes, processor, tensors)
    try:
        whole(open_path(path, Asked()))
    except UserError as error:
        assert str(path) in str(error)


@many
@given(changes=st.dictionaries(st.sampled_from(sorted(TRANSFORMERS[1])), VALUES, min_size=1, max_size=3))
def test_any_processor_is_understood_or_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    config, processor, tensors = TRANSFORMERS
    path = folder(tmp_path / "hf", config, processor | changes, tensors)
    try:
        whole(open_path(path, Asked()))
    except UserError as error:
        assert str(path) in str(error)


def test_a_prefix_that_is_misspelt_once_is_still_the_prefix(tmp_path: Path) -> None:
    config, processor, tensors = TRANSFORMERS
    name = "vit.embeddings.patch_embeddings.projection.weight"
    damaged = {key.replace("vit", "ait") if key == name else key: tensor for key, tensor in tensors.items()}
    found = refused(folder(tmp_path / "hf", config, processor, damaged))
    assert "ait.embeddings.patch_embeddings.projection.weight" in found and "vit.encoder" not in found


@many
@given(data=st.data())
def test_a_key_of_transformers_off_by_one_letter_is_named(data: st.DataObject, tmp_path: Path) -> None:
    config, processor, tensors = TRANSFORMERS
    name = data.draw(st.sampled_from(sorted(tensors)))
    place = data.draw(st.integers(0, len(name) - 1))
    wrong = name[:place] + data.draw(st.sampled_from("abcxyz01_")) + name[place + 1 :]
    assume(wrong not in tensors)
    damaged = {wrong if key == name else key: tensor for key, tensor in tensors.items()}
    found = refused(folder(tmp_path / "hf", config, processor, damaged))
    assert wrong.removeprefix("vit.") in found or "are missing" in found or "missing: " in found, found


@pytest.mark.parametrize("file", ["../stolen.safetensors", "/etc/passwd", "a/b.safetensors"])
def test_an_index_cannot_leave_its_folder(file: str, tmp_path: Path) -> None:
    config, processor, tensors = TRANSFORMERS
    path = folder(tmp_path / "hf", config, processor, tensors)
    write_safetensors(tmp_path / "stolen.safetensors", tensors)
    write_json(path / "model.safetensors.index.json", {"weight_map": {"a": file}})
    assert f"{file!r} is not in the folder" in refused(path)


def test_several_files_are_one_model(tmp_path: Path) -> None:
    config, processor, tensors = TRANSFORMERS
    path = folder(tmp_path / "hf", config, processor, {})
    (path / "model.safetensors").unlink()
    for shard, part in (("1", sorted(tensors)[::2]), ("2", sorted(tensors)[1::2])):
        write_safetensors(path / f"model-{shard}.safetensors", {name: tensors[name] for name in part})
    names = {name: f"model-{1 + index % 2}.safetensors" for index, name in enumerate(sorted(tensors))}
    write_json(path / "model.safetensors.index.json", {"weight_map": names})
    assert whole(open_path(path, Asked())).tensors.keys() == BASE.tensors.keys()
    (path / "model-2.safetensors").unlink()
    assert "model-2.safetensors: no such file" in refused(path)


def test_without_its_processor_a_folder_does_not_say_how_images_are_prepared(tmp_path: Path) -> None:
    path = folder(tmp_path / "hf", *TRANSFORMERS)
    (path / "preprocessor_config.json").unlink()
    assert "SHA256SUMS.txt lists 'preprocessor_config.json', which is not there" in refused(path)
    (path / "SHA256SUMS.txt").unlink()
    assert "does not say how images are to be normalised" in refused(path)
    by_hand(path / "preprocessor_config.json", json.dumps([1]))
    assert "should hold a JSON object" in refused(path)
