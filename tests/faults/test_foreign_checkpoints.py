"""Foreign checkpoints, damaged, hostile and mislabelled, through the convert command: each refused by what is wrong.

What is safetensors or a ``.pth`` alone is in ``test_checkpoints.py``; here is what more formats add, and that nothing
is left behind.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults.foreign_checkpoints import BASE, NAME, TRANSFORMERS, Bomb, folder, refused
from googles import googles
from safetensors.numpy import save

from convert.files import write_safetensors


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
