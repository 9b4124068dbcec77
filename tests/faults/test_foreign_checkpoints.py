"""Foreign checkpoints, damaged, hostile and mislabelled, through the convert command: each refused by what is wrong.

What is safetensors or a ``.pth`` alone is in ``test_checkpoints.py``; here is what more formats add, and that nothing
is left behind.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import by_hand
from googles import googles
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from convert.base import load_base, whole
from convert.files import write_json, write_safetensors
from convert.layouts import mlx_vision, torchvision, transformers
from convert.layouts.layout import Asked
from convert.layouts.npz import read_npz
from convert.layouts.renaming import Pair
from convert.open import open_path
from mlx_peft.artifacts.convert import convert
from mlx_peft.config.schema import Model
from mlx_peft.core.errors import UserError

SIZES: dict[str, Any] = {"depth": 2, "embed_dim": 24, "num_heads": 3}
NAME = "vit_tiny_patch16_224.augreg_in21k"
BASE = load_base(Model(name=NAME, weights="none", image_size=32, args=SIZES), 2, seed=0)

many = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def refused(source: Path, **asked: Any) -> str:
    """What a conversion says that must not succeed, once it has left nothing behind."""
    before = sorted(source.parent.rglob("*"))
    with pytest.raises(UserError) as caught:
        convert(str(source), source.parent / "out", "mlx", verify=False, **asked)
    assert sorted(source.parent.rglob("*")) == before
    return str(caught.value)


def test_the_archive_that_is_damaged_here_is_whole(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **googles(BASE.tensors, 3))
    found = whole(open_path(tmp_path / "a.npz", Asked()))
    assert found.tensors.keys() == BASE.tensors.keys()
    for name, tensor in BASE.tensors.items():
        np.testing.assert_array_equal(found.tensors[name], tensor)


def array(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + data


def archive(path: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as opened:
        for name, content in entries.items():
            opened.writestr(name, content)
    return path


class Bomb:
    """A pickle that would write a file when loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


PLAIN = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "an archive without arrays"),
        ({"cls.npy": b""}, r"not a whole \.npz archive"),
        ({"cls.npy": b"no array at all"}, r"not a whole \.npz archive"),
        ({"cls.npy": array(PLAIN % f"{2**40},")}, r"cls claims the shape \(1099511627776,\) in 128 bytes"),
        ({"cls.npy": array(PLAIN % f"{2**62}, 8")}, r"cls claims the shape"),
        ({"cls.npy": array(PLAIN % "-1,", bytes(4))}, r"not a whole \.npz archive|claims the shape"),
        ({"cls.npy": array("{'descr': '<f4'}")}, r"not a whole \.npz archive"),
        ({"cls.npy": array(PLAIN % "1," + "(", bytes(4))}, r"not a whole \.npz archive"),
        ({"cls.npy": array("__import__('os').system('touch run')")}, r"not a whole \.npz archive"),
        ({"cls.npy": array(PLAIN % "1,", bytes(4), b"\x09\x00")}, "an array in format"),
        ({"cls.npy": array(PLAIN.replace("<f4", "<i4") % "1,", bytes(4))}, r"not of a float type: cls \(int32\)"),
        ({"cls.npy": array(PLAIN.replace("<f4", "|O") % "1,", bytes(8))}, "cls holds Python objects, which are never"),
        ({"cls.npy": array(PLAIN % "1,", struct.pack("<f", np.nan))}, "NaN or infinite values in cls"),
        (
            {"cls.npy": array(PLAIN % "1,", bytes(4))},
            "not a ViT of timm, torchvision, mlx-image, transformers or Google",
        ),
        ({"../../cls.npy": array(PLAIN % "1,", bytes(4))}, "not a ViT of"),
    ],
)
def test_a_hostile_archive_is_refused_by_name(entries: dict[str, bytes], message: str, tmp_path: Path) -> None:
    found = refused(archive(tmp_path / "a.npz", entries))
    assert re.search(message, found) and "a.npz" in found, found


def test_an_array_of_objects_is_not_unpickled(tmp_path: Path) -> None:
    trace = tmp_path / "was-run"
    np.savez(tmp_path / "a.npz", cls=np.array([Bomb(trace)], dtype=object))
    assert "cls holds Python objects, which are never loaded" in refused(tmp_path / "a.npz")
    assert not trace.exists()


def test_a_bomb_is_refused_unread(tmp_path: Path) -> None:
    content = array(PLAIN % f"{2**24},", bytes(2**26))
    path = archive(tmp_path / "a.npz", {"cls.npy": content}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**17
    assert "claims to hold 67,108,992" in refused(path)


@many
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_archive_is_refused(share: float, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **googles(BASE.tensors, 3))
    left = buffer.getvalue()[: int(share * buffer.tell())]
    (tmp_path / "a.npz").write_bytes(left)
    assert (f"a.npz{': not a whole .npz archive' if left else ' is an empty file'}") in refused(tmp_path / "a.npz")


@many
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_seen_as_a_value(position: float, bit: int, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **googles(BASE.tensors, 3))
    content = bytearray(buffer.getvalue())
    content[int(position * len(content))] ^= 1 << bit
    (tmp_path / "a.npz").write_bytes(content)
    try:
        found = read_npz(tmp_path / "a.npz")
    except UserError as error:
        assert "a.npz" in str(error)
    else:  # in what the archive's checksums do not cover
        for name, tensor in googles(BASE.tensors, 3).items():
            assert np.array_equal(found.get(name, tensor), tensor)


def renamed(pairs: list[Pair], tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    from convert.layouts.renaming import from_timm

    return from_timm(tensors, pairs)


def torchvisions(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return renamed(torchvision.PAIRS, tensors)


def mlx_images(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = renamed(mlx_vision.PAIRS, tensors)
    return found | {"conv_proj.weight": found["conv_proj.weight"].transpose(0, 2, 3, 1)}


@pytest.mark.parametrize(
    "layout", [torchvisions, mlx_images, lambda tensors: googles(BASE.tensors, 3)], ids=["tv", "mlx", "npz"]
)
@many
@given(data=st.data())
def test_a_foreign_key_off_by_one_letter_is_named(
    layout: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]], data: st.DataObject, tmp_path: Path
) -> None:
    tensors = layout(BASE.tensors)
    name = data.draw(st.sampled_from(sorted(tensors)))
    place = data.draw(st.integers(0, len(name) - 1))
    wrong = name[:place] + data.draw(st.sampled_from("abcxyz01_")) + name[place + 1 :]
    assume(wrong not in tensors and not name.startswith("head"))
    tensors = {wrong if key == name else key: np.ascontiguousarray(tensor) for key, tensor in tensors.items()}
    suffix = ".npz" if "cls" in tensors or "embedding/bias" in tensors else ".safetensors"
    path = tmp_path / f"a{suffix}"
    if suffix == ".npz":
        np.savez(path, **tensors)
    else:
        path.write_bytes(save(tensors))
    found = refused(path, model="vit_b_32", args={"num_heads": 3})
    assert wrong in found or name in found or "depth" in found or "are missing" in found, found


TRANSFORMERS = transformers.pack(BASE.architecture, BASE.preprocessing, BASE.tensors, ("a", "b"))


def folder(path: Path, config: dict[str, Any], processor: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    path.mkdir(exist_ok=True)
    write_json(path / "config.json", config)
    write_json(path / "preprocessor_config.json", processor)
    write_safetensors(path / "model.safetensors", tensors)
    return path


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
        ({"image_processor_type": "BeitImageProcessor"}, "'BeitImageProcessor' is not supported"),
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": torch.ones(1).expand(2**40)}, "its tensors would have 4,398,046,511,104"),
        ({"a": torch.ones(8, 8).to_sparse()}, "holds the object torch._utils._rebuild_sparse_tensor"),
        ({"a": torch.empty(2**40, device="meta")}, "holds the object torch._utils._rebuild_meta_tensor"),
        (
            {"a": torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)},
            "holds the object torch._utils._rebuild_qtensor",
        ),
        ({"model": {"state_dict": {"model": {"model": {"model": {"a": 1}}}}}}, "not tensors: "),
        ({"teacher": {"a": torch.ones(1)}, "student": {"a": zipfile.ZipFile}}, "holds the object zipfile.ZipFile"),
        ({"teacher": {"a": torch.ones(1)}, "student": {"a": Path}}, "not tensors: student.a"),
    ],
)
def test_a_pth_that_is_more_than_its_bytes_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    found = refused(tmp_path / "a.pth", model=NAME)
    assert re.search(message, found), found


def test_a_pth_that_holds_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    torch.save(content, tmp_path / "a.pth")
    assert "a.pth: these entries are not tensors: model" in refused(tmp_path / "a.pth", model=NAME)


def test_an_archive_that_claims_more_than_it_has_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(4)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as opened:
        offset = opened.start_dir
    content = bytearray((tmp_path / "a.pth").read_bytes())
    size = struct.pack("<I", 2**31)
    content[offset + 20 : offset + 28] = size + size  # both sizes of the first entry
    (tmp_path / "a.pth").write_bytes(content)
    assert "that claims to hold" in refused(tmp_path / "a.pth", model=NAME)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".npz", ".bin", ".pt"])
@pytest.mark.parametrize("kind", ["safetensors", "npz", "pickle", "text", "nothing"])
def test_a_file_of_another_kind_than_its_name_is_refused(suffix: str, kind: str, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **googles(BASE.tensors, 3))
    trace = tmp_path.with_name("was-run")
    content = {
        "safetensors": save(BASE.tensors),
        "npz": buffer.getvalue(),
        "pickle": pickle.dumps(Bomb(trace)),
        "text": b"{}",
        "nothing": b"",
    }[kind]
    if f".{kind}" == suffix:
        return
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    assert str(path) in refused(path, model=NAME)
    assert not trace.exists()


def test_tensors_of_transformers_alone_do_not_say_enough(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", TRANSFORMERS[2])
    assert "name the folder that has the config.json" in refused(tmp_path / "a.safetensors", model=NAME)


def test_a_model_that_is_not_what_its_name_says_is_refused(tmp_path: Path) -> None:
    path = folder(tmp_path / "hf", *TRANSFORMERS)
    found = refused(path, model="vit_base_patch16_224")
    assert "is no vit_base_patch16_224: it has" in found and "embed_dim: 24" in found and "the nearest name is" in found


def test_without_its_processor_a_folder_does_not_say_how_images_are_prepared(tmp_path: Path) -> None:
    path = folder(tmp_path / "hf", *TRANSFORMERS)
    (path / "preprocessor_config.json").unlink()
    assert "SHA256SUMS.txt lists 'preprocessor_config.json', which is not there" in refused(path)
    (path / "SHA256SUMS.txt").unlink()
    assert "does not say how images are to be normalised" in refused(path)
    by_hand(path / "preprocessor_config.json", json.dumps([1]))
    assert "should hold a JSON object" in refused(path)
