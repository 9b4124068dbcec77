"""The digits, Fashion-MNIST's IDX files, and names that are no data set."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.data import REGISTRY, Dataset, open_dataset
from mlx_peft.data.opening import open_entry
from mlx_peft.data.sets import fashion_mnist
from mlx_peft.data.sets.fashion_mnist import read_idx


def test_the_digits_are_scikit_learns_spread_over_all_levels() -> None:
    dataset = open_dataset(schema.Data(name="digits", split=schema.Split(val=0)))
    assert dataset.classes == tuple("0123456789")
    assert dataset.train.size == 1797
    assert dataset.train.images.stored_size == (8, 8)
    image = dataset.train.images.read(5)
    assert image.dtype == np.uint8
    assert image.shape == (8, 8, 3)
    assert np.array_equal(image[..., 0], image[..., 2])
    assert np.abs(image[..., 1] - load_digits().images[5] * 255 / 16).max() <= 0.5
    assert dataset.train.labels[5] == load_digits().target[5]


def test_the_digits_are_held_out_by_the_split() -> None:
    dataset = open_dataset(schema.Data(name="digits", split=schema.Split(val=0.1, test=0.2)))
    assert [split and split.size for split in (dataset.train, dataset.val, dataset.test)] == [1259, 179, 359]


@pytest.mark.parametrize(("wrong", "right"), [("cifar_100", "cifar100"), ("fashion-mnist", "fashion_mnist")])
def test_an_unknown_name_is_met_with_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(UserError, match=f"unknown data set '{wrong}'; did you mean '{right}'"):
        open_dataset(schema.Data(name=wrong))


def test_each_data_set_has_a_line_of_description() -> None:
    assert all(entry.description and "\n" not in entry.description for entry in REGISTRY.values())
    assert list(REGISTRY) == sorted(REGISTRY)


SIZES = {"train": 40, "t10k": 20}


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


@pytest.fixture
def fashion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small Fashion-MNIST: of each part one file as it is, one compressed, as people have them."""
    monkeypatch.setattr(fashion_mnist, "SIZES", SIZES)
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for prefix, size in SIZES.items():
        images = rng.integers(0, 256, (size, 28, 28), np.uint8)
        labels = np.arange(size, dtype=np.uint8) % 10
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return folder


def opened(root: Path, val: float = 0.1) -> Dataset:
    entry = REGISTRY["fashion_mnist"]
    small = replace(entry.variants[0], sizes={"train": SIZES["train"], "test": SIZES["t10k"]})
    config = schema.Data(name="fashion_mnist", root=root, split=schema.Split(val=val))
    return open_entry(replace(entry, variants=(small,)), config)


def test_fashion_mnist_is_read_from_idx_files(fashion: Path) -> None:
    dataset = opened(fashion.parent.parent, val=0.25)
    assert [split and split.size for split in (dataset.train, dataset.val, dataset.test)] == [30, 10, 20]
    assert dataset.test and dataset.test.labels.tolist() == [n % 10 for n in range(20)]
    stored = np.frombuffer((fashion / "t10k-images-idx3-ubyte").read_bytes()[16:], np.uint8).reshape(20, 28, 28)
    assert np.array_equal(dataset.test.images.read(7)[..., 1], stored[7])
    assert dataset.classes[9] == "Ankle boot"


def test_fashion_mnist_that_is_not_there_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no train-images-idx3-ubyte\[\.gz\] in .*data\.download: true"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3-ubyte", idx(np.zeros((40, 28, 27), np.uint8)), "should be an IDX file of uint8 "),
        ("train-images-idx3-ubyte", idx(np.zeros((40, 28, 28), np.uint8))[:-9], r"has 31367 bytes; .* needs 31376"),
        ("train-images-idx3-ubyte", idx(np.zeros((40, 28, 28), np.uint8)) + b"x", "more than 31376 bytes"),
        ("train-images-idx3-ubyte", b"", "should be an IDX file"),
        ("t10k-labels-idx1-ubyte.gz", b"\x1f\x8b nothing", "cannot be read"),
        (
            "t10k-labels-idx1-ubyte.gz",
            gzip.compress(idx(np.full(20, 10, np.uint8)), mtime=0),
            "labels should be 0 to 9; there is 10",
        ),
        ("t10k-labels-idx1-ubyte.gz", gzip.compress(idx(np.zeros(20, np.uint8)), mtime=0)[:-12], "cannot be read"),
    ],
)
def test_a_damaged_idx_file_is_refused_by_name(fashion: Path, name: str, content: bytes, message: str) -> None:
    (fashion / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name.removesuffix('.gz')}.*{message}"):
        opened(fashion)


def test_a_missing_idx_file_is_refused_by_name(fashion: Path) -> None:
    (fashion / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match=r"t10k-labels-idx1-ubyte\.gz: cannot be read \(No such file"):
        opened(fashion)


def test_a_compressed_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb"
    path.with_name("bomb.gz").write_bytes(gzip.compress(idx(np.zeros(5, np.uint8)) + bytes(50_000_000)))
    with pytest.raises(UserError, match="more than 13 bytes"):
        read_idx(path, (5,))
