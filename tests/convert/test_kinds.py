"""A file of weights is what is in it, whatever it is called; and what is in it is said where it is no weights."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from googles import googles
from safetensors.numpy import save
from typer.testing import CliRunner

from convert.adapters.peft import read_adapter
from convert.base import Base, load_base
from convert.kinds import kind_of
from mlx_peft.cli.app import app
from mlx_peft.config.schema import Model
from mlx_peft.core.errors import UserError

NAME = "vit_tiny_patch16_224"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pth.tar", ".npz", ".weights", "")


def pickled(base: Base, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save({name: torch.from_numpy(tensor) for name, tensor in base.tensors.items()}, file, **options)
    return file.getvalue()


def archived(base: Base) -> bytes:
    file = io.BytesIO()
    np.savez(file, **googles(base.tensors, base.architecture.num_heads))
    return file.getvalue()


MADE: dict[str, Callable[[Base], bytes]] = {
    "safetensors": lambda base: save(base.tensors),
    "an archive of PyTorch's": pickled,
    "one of before 1.6": lambda base: pickled(base, _use_new_zipfile_serialization=False),
    "npz": archived,
}


@pytest.mark.parametrize("made", MADE)
def test_weights_are_read_by_what_is_in_the_file(made: str, tiny: Callable[..., Base], tmp_path: Path) -> None:
    base = tiny(NAME, image_size=32)
    content = MADE[made](base)
    for suffix in SUFFIXES:
        path = tmp_path / f"weights{suffix}"
        path.write_bytes(content)
        model = Model(name=f"{NAME}.augreg_in21k", weights=str(path), image_size=32, args=base_args(base))
        found = load_base(model, None, seed=0).tensors
        assert found.keys() == base.tensors.keys()
        for name, tensor in base.tensors.items():
            np.testing.assert_array_equal(found[name], tensor)


def base_args(base: Base) -> dict[str, Any]:
    return {key: getattr(base.architecture, key) for key in ("depth", "embed_dim", "num_heads")}


@pytest.mark.parametrize("first", [b"{", b"[", b"<", b"\x80", b"\x1f"])
def test_a_header_may_be_of_any_length(first: bytes, tmp_path: Path) -> None:
    content = save({"a": np.zeros(2, np.float32)})
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    header += b" " * ((first[0] - len(header)) % 256)
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    assert path.read_bytes()[:1] == first and kind_of(path) == "safetensors"


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        for name in names:
            opened.writestr(name, b"x")
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as opened:
        opened.addfile(tarfile.TarInfo("weights.pth"))
    return file.getvalue()


def numbers() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


OTHERS = {
    "an empty file": b"",
    "compressed with gzip: unpack it first, with gunzip": gzip.compress(pickle.dumps({})),
    "a pointer of Git LFS and not the file itself: fetch it with git lfs pull": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"
    ),
    "a web page, such as a server sends in the place of a file": b"\n <!DOCTYPE html><html><title>404</title>",
    "JSON and no weights": json.dumps({"error": "gated"}).encode(),
    "a single array of NumPy's": numbers(),
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "a tar archive: unpack it first": tarred(),
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz", ".bin", ".pth.gz", ".ckpt", ""])
@pytest.mark.parametrize("said", OTHERS)
def test_what_is_no_weights_is_named(said: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(OTHERS[said])
    with pytest.raises(UserError) as refused:
        load_base(Model(name=NAME, weights=str(path)), 5, seed=0)
    assert str(refused.value).startswith(f"{path} is {said}")


@pytest.mark.parametrize(("content", "said"), [(zipped("a.txt"), "a zip archive, and neither"), (b"", "an empty file")])
def test_so_is_what_has_no_name_of_weights_either(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(UserError, match=said):
        kind_of(tmp_path / "weights")


def test_the_commands_say_it_too(tiny: Callable[..., Base], tmp_path: Path) -> None:
    pointer = next(content for said, content in OTHERS.items() if "LFS" in said)
    for name in ("adapter_model.safetensors", "weights.ckpt"):
        (tmp_path / name).write_bytes(pointer)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(UserError, match="a pointer of Git LFS"):
        read_adapter(tmp_path)
    for command in (["info", tmp_path / "weights.ckpt"], ["convert", tmp_path / "weights.ckpt", "out", "--to", "mlx"]):
        done = CliRunner().invoke(app, list(map(str, command)), obj="torch")
        assert done.exit_code == 2 and "a pointer of Git LFS" in done.stderr
    (tmp_path / "weights.ckpt").write_bytes(save(tiny(NAME).tensors))
    done = CliRunner().invoke(app, ["info", str(tmp_path / "weights.ckpt"), "--json"], obj="torch")
    assert json.loads(done.stdout)["dtypes"] == {"F32": len(tiny(NAME).tensors)}


def test_an_adapter_file_of_another_kind_is_named(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(UserError, match="a pickle, such as PyTorch writes, and should be a safetensors file"):
        read_adapter(tmp_path)
