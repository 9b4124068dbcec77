"""Sets of arrays in their real files: SVHN's MATLAB files, MedMNIST's npz archives."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from mlx_peft.core.errors import UserError
from mlx_peft.data import REGISTRY, Dataset, archives
from mlx_peft.data.download import Remote
from mlx_peft.data.sets import medmnist
from mlx_peft.tasks.multi_label import MULTI_LABEL

Open = Callable[..., Dataset]
RNG = np.random.default_rng(0)

STREET = {"train": 30, "test": 20}


@pytest.fixture
def svhn(tmp_path: Path) -> Path:
    for name, size in STREET.items():
        pixels = RNG.integers(0, 256, (32, 32, 3, size), np.uint8)
        labels = (1 + np.arange(size) % 10).astype(np.uint8)[:, None]
        savemat(tmp_path / f"{name}_32x32.mat", {"X": pixels, "y": labels}, do_compression=True)
    return tmp_path


def test_svhn_is_read_and_its_ten_is_the_digit_0(svhn: Path, opened_as: Open) -> None:
    from scipy.io import loadmat

    dataset = opened_as("svhn", svhn, STREET, split={"val": 0.0})
    stored = loadmat(svhn / "test_32x32.mat")
    assert dataset.classes == tuple("0123456789")
    assert dataset.test and dataset.test.labels[:11].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert np.array_equal(dataset.test.images.read(7), stored["X"][..., 7])
    assert dataset.train.images.stored_size == (32, 32)


def test_torchvision_reads_the_same_numbers(svhn: Path, opened_as: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    monkeypatch.setattr("torchvision.datasets.svhn.check_integrity", lambda path, md5: Path(path).exists())
    dataset = opened_as("svhn", svhn, STREET, split={"val": 0.0})
    for name, split in dataset.splits.items():
        other = datasets.SVHN(svhn, split=name)
        for row in range(split.size):
            image, label = other[row]
            assert (np.array_equal(split.images.read(row), image), split.labels[row]) == (True, label)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"X": np.zeros((32, 32, 3, 2), np.uint8)}, "no array 'y'; there is 'X'"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.ones((1, 2))}, r"they are uint8 .* and \(1, 2\)"),
        ({"X": np.zeros((2, 3, 32, 32), np.uint8), "y": np.ones((2, 1))}, "X should be uint8"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.zeros((2, 1))}, "labels should be 1 to 10, and are 0 to 0"),
        (
            {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.full((2, 1), 11)},
            "labels should be 1 to 10, and are 11 to 11",
        ),
        ({"X": np.zeros((32, 32, 3, 2), np.float64), "y": np.ones((2, 1))}, "they are float64 "),
    ],
)
def test_a_matlab_file_that_is_not_svhn_is_refused(
    svhn: Path, opened_as: Open, content: dict[str, object], message: str
) -> None:
    savemat(svhn / "train_32x32.mat", content)
    with pytest.raises(UserError, match=rf"train_32x32\.mat: .*{message}"):
        opened_as("svhn", svhn, STREET)


def test_matlab_s_hdf5_is_refused_by_name(svhn: Path, opened_as: Open) -> None:
    head = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
    (svhn / "train_32x32.mat").write_bytes(head + b"\x89HDF\r\n\x1a\n" + bytes(500))
    with pytest.raises(UserError, match=r"train_32x32\.mat: not a readable MATLAB file \(.*HDF"):
        opened_as("svhn", svhn, STREET)


MED = {"train": 12, "val": 6, "test": 8}


def npz(path: Path, name: str, side: int, **changed: np.ndarray) -> Path:
    """An archive as MedMNIST publishes it: compressed, labels of shape (n, 1), or (n, 14) of 0 and 1."""
    medset = medmnist.SETS[name]
    arrays = {}
    for split, size in MED.items():
        colour = () if medset.channels == 1 else (3,)
        arrays[f"{split}_images"] = RNG.integers(0, 256, (size, side, side, *colour), np.uint8)
        arrays[f"{split}_labels"] = (
            RNG.integers(0, 2, (size, len(medset.classes)), np.uint8)
            if medset.findings
            else (np.arange(size) % len(medset.classes)).astype(np.uint8)[:, None]
        )
    stem = name if side == 28 else f"{name}_{side}"
    np.savez_compressed(path / f"{stem}.npz", **(arrays | changed))
    return path / f"{stem}.npz"


@pytest.mark.parametrize("name", sorted(set(medmnist.SETS) - {"chestmnist"}))
@pytest.mark.parametrize("side", [28, 64])
def test_each_medmnist_is_read(tmp_path: Path, opened_as: Open, name: str, side: int) -> None:
    path = npz(tmp_path, name, side)
    dataset = opened_as(f"medmnist:{name}", tmp_path, MED, variant=side)
    assert {part: split.size for part, split in dataset.splits.items()} == MED
    assert dataset.val
    assert dataset.val.labels.shape == (6,), "published as (n, 1)"
    assert dataset.val.images.stored_size == (side, side)
    with np.load(path) as stored:
        image = stored["val_images"][4]
    assert np.array_equal(dataset.val.images.read(4)[..., 0], image if image.ndim == 2 else image[..., 0])


@pytest.mark.parametrize("side", [128, 224])
def test_the_large_sizes_are_variants_too(tmp_path: Path, opened_as: Open, side: int) -> None:
    npz(tmp_path, "breastmnist", side)
    dataset = opened_as("medmnist:breastmnist", tmp_path, MED, variant=side)
    assert dataset.train.images.stored_size == (side, side)
    assert dataset.classes == ("malignant", "normal, benign")


def test_medmnist_states_its_sizes_and_a_part_is_refused(tmp_path: Path, opened_as: Open) -> None:
    entry = REGISTRY["medmnist:breastmnist"]
    assert [variant.name for variant in entry.variants] == ["28", "64", "128", "224"]
    assert entry.variants[0].sizes == {"train": 546, "val": 78, "test": 156}
    npz(tmp_path, "breastmnist", 28)
    with pytest.raises(
        UserError, match=r"breastmnist\.npz: train_images is uint8 \(12, 28, 28\), not .*\(546, 28, 28\)"
    ):
        opened_as("medmnist:breastmnist", tmp_path)
    with pytest.raises(UserError, match=r"no breastmnist_64\.npz in .*; set data\.root .* https://zenodo"):
        opened_as("medmnist:breastmnist", tmp_path, variant="64")


def test_more_images_than_published_are_refused_before_they_are_unpacked(
    tmp_path: Path, opened_as: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    npz(tmp_path, "breastmnist", 28, train_images=np.zeros((3000, 28, 28), np.uint8))

    def unpacked(count: int, dtype: object) -> None:
        raise AssertionError(f"room for {count} bytes")

    monkeypatch.setattr(archives, "_empty", unpacked)
    with pytest.raises(UserError, match=r"train_images is uint8 \(3000, 28, 28\), not whole numbers \(12, 28, 28\)"):
        opened_as("medmnist:breastmnist", tmp_path, MED)


def test_medmnist_is_fetched_where_it_is_missing_and_may_be(
    tmp_path: Path, opened_as: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive itself is made here: what is asked for, and with which checksum, is what counts."""
    asked = []

    def fetched(remote: Remote, folder: Path) -> None:
        asked.append(remote)
        npz(folder, "breastmnist", 64)

    monkeypatch.setattr(medmnist, "fetch", fetched)
    for _ in range(2):
        dataset = opened_as("medmnist:breastmnist", tmp_path, MED, variant=64, download=True)
    (remote,) = asked
    assert remote.url == "https://zenodo.org/records/10519652/files/breastmnist_64.npz?download=1"
    assert remote.md5 == "742edef2a1fd1524b2efff4bd7ba9364"
    assert dataset.notes == ()
    assert set(medmnist.MD5) == set(medmnist.SETS)
    assert len({md5 for of_set in medmnist.MD5.values() for md5 in of_set}) == 48
    assert all(len(md5) == 32 for of_set in medmnist.MD5.values() for md5 in of_set)


@pytest.mark.parametrize("side", [28, 64])
def test_a_set_of_several_labels_keeps_all_of_them(tmp_path: Path, opened_as: Open, side: int) -> None:
    path = npz(tmp_path, "chestmnist", side)
    dataset = opened_as("medmnist:chestmnist", tmp_path, MED, variant=side)
    assert dataset.task == MULTI_LABEL
    assert len(dataset.classes) == 14
    with np.load(path) as stored:
        for name, split in dataset.splits.items():
            assert (split.labels.dtype, split.labels.shape) == (np.uint8, (MED[name], 14))
            assert np.array_equal(split.labels, stored[f"{name}_labels"])
    relabelled = npz(tmp_path, "chestmnist", side)
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays["val_labels"][3, 13] ^= 1
    np.savez_compressed(relabelled, **arrays)
    once = opened_as("medmnist:chestmnist", tmp_path, MED, variant=side)
    arrays["val_labels"][3, 13] ^= 1
    np.savez_compressed(relabelled, **arrays)
    again = opened_as("medmnist:chestmnist", tmp_path, MED, variant=side)
    assert once.val and again.val and once.val.sha256 != again.val.sha256, "one finding of one image"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full((6, 14), 2, np.uint8), "val labels are not 14 times 0 or 1"),
        (np.full((6, 14), 257, np.int64), "val labels are not 14 times 0 or 1"),
        (np.full((6, 14), -255, np.int64), "val labels are not 14 times 0 or 1"),
        (np.zeros((6, 1), np.uint8), r"val_labels is uint8 \(6, 1\), not whole numbers \(6, 14\)"),
    ],
)
def test_several_labels_are_zeros_and_ones(tmp_path: Path, opened_as: Open, labels: np.ndarray, message: str) -> None:
    npz(tmp_path, "chestmnist", 28, val_labels=labels)
    with pytest.raises(UserError, match=message):
        opened_as("medmnist:chestmnist", tmp_path, MED)


@pytest.mark.parametrize("sampling", ["class", "square_root"])
def test_images_of_several_classes_are_not_sampled_by_class(tmp_path: Path, opened_as: Open, sampling: str) -> None:
    with pytest.raises(UserError, match=rf"data\.sampling: {sampling} draws images by their class.*class_weights"):
        opened_as("medmnist:chestmnist", tmp_path, MED, sampling=sampling)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"val_labels": np.zeros(6, np.uint8)}, r"val_labels is uint8 \(6,\), not whole numbers \(6, 1\)"),
        ({"val_labels": np.zeros((6, 14), np.uint8)}, r"val_labels is uint8 \(6, 14\), not whole numbers \(6, 1\)"),
        ({"val_labels": np.zeros((5, 1), np.uint8)}, r"val_labels is uint8 \(5, 1\), not whole numbers \(6, 1\)"),
        ({"val_images": np.zeros((6, 28, 28, 3), np.uint8)}, r"not whole numbers \(6, 28, 28\)"),
        ({"val_images": np.zeros((6, 28, 28))}, r"val_images is float64 \(6, 28, 28\), not whole numbers"),
    ],
)
def test_arrays_of_another_shape_are_refused(
    tmp_path: Path, opened_as: Open, changed: dict[str, np.ndarray], message: str
) -> None:
    npz(tmp_path, "breastmnist", 28, **changed)
    with pytest.raises(UserError, match=rf"breastmnist\.npz: .*{message}"):
        opened_as("medmnist:breastmnist", tmp_path, MED)


def test_a_label_beyond_the_classes_is_refused(tmp_path: Path, opened_as: Open) -> None:
    npz(tmp_path, "breastmnist", 28, test_labels=np.full((8, 1), 2, np.uint8))
    with pytest.raises(UserError, match=r"test labels 2 to 2, not 0 to 1"):
        opened_as("medmnist:breastmnist", tmp_path, MED)


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        import os

        return os.mkdir, (str(self.path),)


def test_objects_in_an_archive_are_never_unpickled(tmp_path: Path, opened_as: Open) -> None:
    npz(tmp_path, "breastmnist", 28, val_images=np.array([Trap(tmp_path / "sprung")], object))
    with pytest.raises(UserError, match=r"val_images is object \(1,\), not whole numbers"):
        opened_as("medmnist:breastmnist", tmp_path, MED)
    with zipfile.ZipFile(tmp_path / "breastmnist.npz", "w") as archive:
        for split in MED:
            for what in ("images", "labels"):
                archive.writestr(f"{split}_{what}.npy", pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(UserError, match=r"breastmnist\.npz: not a readable npz archive"):
        opened_as("medmnist:breastmnist", tmp_path, MED)
    assert not (tmp_path / "sprung").exists()


def header(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize(
    ("shape", "content", "message"),
    [
        ((10**6, 28, 28), bytes(100), "images is shorter than"),
        ((10**9, 28, 28), bytes(100), "images has 784,000,000,000 bytes; at most"),
        ((2, 28, 28), bytes(10_000_000), "images is longer than"),
        ((-2, 28, 28), bytes(100), "npz archive|not whole numbers"),
    ],
)
def test_a_member_that_lies_about_its_size_is_refused(
    tmp_path: Path, shape: tuple[int, ...], content: bytes, message: str
) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", header(shape) + content)
    with pytest.raises(UserError, match=rf"a\.npz: .*({message})"):
        archives.read_npz(path, {"images": (-1, 28, 28)})


def test_an_array_too_large_for_memory_is_mapped_with_the_same_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "IN_MEMORY", 1000)
    image = RNG.integers(0, 256, (5, 28, 28), np.uint8)
    np.savez_compressed(tmp_path / "a.npz", images=image)
    found = archives.read_npz(tmp_path / "a.npz", {"images": (-1, 28, 28)})["images"]
    assert isinstance(found, np.memmap) and np.array_equal(found, image)
