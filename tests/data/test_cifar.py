"""CIFAR in its published forms: both versions, as folders and as archives, and everything that is not CIFAR."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data.cifar_files import (
    BATCH,
    HUNDRED,
    TEN,
    as_archive,
    as_folder,
    binary_files,
    check,
    opened,
    python_files,
)

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.data import open_dataset
from mlx_peft.data.sets import cifar


@pytest.mark.parametrize("kind", [TEN, HUNDRED], ids=lambda kind: kind.name)
@pytest.mark.parametrize("layout", [as_folder, as_archive])
@pytest.mark.parametrize("form", [0, 1], ids=["python", "binary"])
def test_each_published_form_is_read(tmp_path: Path, kind: cifar.Cifar, layout: Callable[..., None], form: int) -> None:
    files = binary_files(kind) if form else python_files(kind)
    layout(tmp_path, kind.versions[form], files)
    check(opened(kind, tmp_path, val=0), kind)


def test_the_root_may_be_the_folder_or_the_archive_itself(tmp_path: Path) -> None:
    as_folder(tmp_path, TEN.versions[0], python_files(TEN))
    as_archive(tmp_path / "archives", TEN.versions[1], binary_files(TEN))
    check(opened(TEN, tmp_path / TEN.versions[0].folder, val=0), TEN)
    check(opened(TEN, tmp_path / "archives" / TEN.versions[1].archive, val=0), TEN)


def test_all_forms_give_the_same_split(tmp_path: Path) -> None:
    hashes = set()
    for form, files in enumerate((python_files(TEN), binary_files(TEN))):
        as_archive(tmp_path / str(form), TEN.versions[form], files)
        dataset = opened(TEN, tmp_path / str(form), val=0.2)
        assert dataset.val
        hashes.add((dataset.train.sha256, dataset.val.sha256))
        assert (dataset.train.size, dataset.val.size) == (80, 20)
    assert len(hashes) == 1


def test_a_set_that_is_not_there_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cifar100: none of .*data\.download: true \(161\.2 MiB from https://"):
        open_dataset(schema.Data(name="cifar100", root=tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_part_of_the_set_is_refused(tmp_path: Path) -> None:
    as_folder(tmp_path, cifar.CIFAR10.versions[0], python_files(TEN))
    with pytest.raises(UserError, match=r"cifar10 in .*: 100 train images, not 50,000: it is not the whole set"):
        open_dataset(schema.Data(name="cifar10", root=tmp_path))


def test_members_that_point_elsewhere_are_not_written_anywhere(tmp_path: Path) -> None:
    files = python_files(TEN)
    version = TEN.versions[0]
    root = tmp_path / "root"
    as_archive(root, version, {"../../escaped": b"out", "/../../../escaped": b"out", **files})
    check(opened(TEN, root, val=0), TEN)
    assert [path.name for path in tmp_path.rglob("*")] == ["root", version.archive]


def test_a_link_in_the_place_of_a_file_is_not_followed(tmp_path: Path) -> None:
    files = python_files(TEN)
    version = TEN.versions[0]
    secret = tmp_path / "secret"
    secret.write_bytes(files.pop("test_batch"))
    with tarfile.open(tmp_path / version.archive, "w:gz") as archive:
        link = tarfile.TarInfo(f"{version.folder}/test_batch")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        archive.addfile(link)
        for name, content in files.items():
            member = tarfile.TarInfo(f"{version.folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with pytest.raises(UserError, match="no cifar-10-batches-py/test_batch in the archive"):
        opened(TEN, tmp_path)


def test_an_archive_that_unpacks_to_too_much_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_archive(tmp_path, TEN.versions[0], python_files(TEN))
    monkeypatch.setattr(cifar, "_MAX_UNPACKED", 100_000)
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz: .*it unpacks to more than"):
        opened(TEN, tmp_path)


@pytest.mark.parametrize("keep", [0, 10, 5000])
def test_a_truncated_archive_is_refused_by_name(tmp_path: Path, keep: int) -> None:
    version = TEN.versions[0]
    as_archive(tmp_path, version, python_files(TEN))
    path = tmp_path / version.archive
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=rf"{version.archive}: (not a readable tar\.gz archive|no cifar)"):
        opened(TEN, tmp_path)


def rows(count: int = BATCH, dtype: type = np.uint8, width: int = 3072) -> np.ndarray:
    return np.zeros((count, width), dtype)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds no dictionary"),
        ({"labels": [0] * BATCH}, "no 'data'; there is 'labels'"),
        ({"data": rows()}, "no 'labels'; there is 'data'"),
        ({"data": [0], "labels": [0]}, "'data' is not an array"),
        ({"data": rows(), "labels": ["0"] * BATCH}, "not a list of integers"),
        ({"data": rows(), "labels": [-1] * BATCH}, "not a list of integers"),
        ({"data": rows(), "labels": [10] * BATCH}, "labels 10 to 10, not 0 to 9"),
        ({"data": rows(), "labels": [0] * 7}, r"labels \(7,\) are not rows of 3072 uint8"),
        ({"data": rows(width=3071), "labels": [0] * BATCH}, "are not rows of 3072 uint8"),
        ({"data": rows(dtype=np.float32), "labels": [0] * BATCH}, "are not rows of 3072 uint8"),
        ({"data": np.full((1, 3072), "x", object), "labels": [0]}, "it has an array of 'O8'"),
    ],
)
def test_a_batch_that_is_not_cifar_is_refused_by_name(tmp_path: Path, content: object, message: str) -> None:
    as_folder(tmp_path, TEN.versions[0], python_files(TEN) | {"test_batch": pickle.dumps(content, protocol=2)})
    with pytest.raises(UserError, match=f"cifar-10-batches-py: test_batch: .*{message}"):
        opened(TEN, tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("test_batch.bin", bytes(3072), "3072 bytes are not rows of 3073"),
        ("test_batch.bin", b"", "0 bytes are not rows of 3073"),
        ("test_batch.bin", b"\x0a" + bytes(3072), "labels 10 to 10"),
        ("batches.meta.txt", b"cat\ndog\n", "2 class names, not 10"),
    ],
)
def test_a_binary_file_that_is_not_cifar_is_refused_by_name(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    as_folder(tmp_path, TEN.versions[1], binary_files(TEN) | {name: content})
    with pytest.raises(UserError, match=f"cifar-10-batches-bin: {name}: .*{message}"):
        opened(TEN, tmp_path)


def test_a_missing_batch_is_refused_by_name(tmp_path: Path) -> None:
    files = python_files(TEN)
    del files["data_batch_4"]
    as_folder(tmp_path, TEN.versions[0], files)
    with pytest.raises(UserError, match=r"data_batch_4: cannot be read \(No such file"):
        opened(TEN, tmp_path)
