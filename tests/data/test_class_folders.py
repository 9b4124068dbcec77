"""Sets of class folders in their real layout: Tiny-ImageNet, ImageNet-1k, EuroSAT, BUSI."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.data import Dataset, find
from mlx_peft.data import dataset as dataset_module

Open = Callable[..., Dataset]
Save = Callable[..., Path]


def sizes(dataset: Dataset) -> dict[str, int]:
    return {name: split.size for name, split in dataset.splits.items()}


TINY_CLASSES = 200
TINY_EACH = 4
TINY = {"train": TINY_CLASSES * TINY_EACH, "test": 2 * TINY_CLASSES}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny-ImageNet as its archive unpacks: boxes beside the images, val by annotations, a test without labels.

    The first image of each class is grey, as some of the real ones are.
    """
    from PIL import Image

    root = tmp_path_factory.mktemp("tiny") / "tiny-imagenet-200"
    wnids = [f"n{number:08d}" for number in range(TINY_CLASSES)]
    rng = np.random.default_rng(0)

    def jpeg(path: Path, mode: str = "RGB") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).convert(mode).save(path, "JPEG")

    lines = []
    for number, wnid in enumerate(wnids):
        for image in range(TINY_EACH):
            jpeg(root / "train" / wnid / "images" / f"{wnid}_{image}.JPEG", "L" if image == 0 else "RGB")
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t7\t7\n")
        for image in (number, number + TINY_CLASSES):
            jpeg(root / "val" / "images" / f"val_{image}.JPEG")
            lines.append(f"val_{image}.JPEG\t{wnid}\t0\t0\t7\t7\n")
    for image in range(3):
        jpeg(root / "test" / "images" / f"test_{image}.JPEG")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(reversed(wnids)) + "\n")
    (root / "words.txt").write_text(f"{wnids[0]}\tsome animal\n")
    return root


def test_tiny_imagenet_is_tested_on_the_val_folder_by_its_annotations(tiny: Path, opened_as: Open) -> None:
    dataset = opened_as("tiny-imagenet", tiny.parent, TINY, split=schema.Split(val=0.25))
    assert sizes(dataset) == {"train": 600, "val": 200, "test": 400}
    assert len(dataset.classes) == TINY_CLASSES
    assert dataset.classes[:2] == ("n00000000", "n00000001")
    assert dataset.test and dataset.test.images.identifiers[:2] == ("val/images/val_0.JPEG", "val/images/val_200.JPEG")
    assert dataset.test.labels[:4].tolist() == [0, 0, 1, 1]
    assert dataset.notes == ("left out, without labels: the test folder",)


def test_tiny_imagenet_s_common_split_is_of_the_train_folder_alone(tiny: Path, opened_as: Open) -> None:
    def carved(**split: float) -> Dataset:
        train = {"train": TINY["train"]}
        return opened_as("tiny-imagenet", tiny, train, variant="80k-10k-10k", split=schema.Split(**split))

    dataset, other = carved(), carved(seed=1)
    assert sizes(dataset) == {"train": 400, "val": 200, "test": 200}, "one of four: a tenth, but at least one"
    assert all(path.startswith("train/") for split in dataset.splits.values() for path in split.images.identifiers)
    assert dataset.test and other.test and dataset.test.sha256 != other.test.sha256
    assert carved(val=0.1, test=0.1).test.sha256 == dataset.test.sha256
    with pytest.raises(
        UserError, match=r"data\.split\.val is 0\.4, but the variant 80k-10k-10k of tiny-imagenet fixes"
    ):
        carved(val=0.4)


def test_a_grey_image_of_tiny_imagenet_has_three_equal_channels(tiny: Path, opened_as: Open) -> None:
    images = opened_as("tiny-imagenet", tiny, TINY, split=schema.Split(val=0)).train.images
    grey = images.read(images.identifiers.index("train/n00000007/images/n00000007_0.JPEG"))
    assert grey.shape == (8, 8, 3)
    assert np.array_equal(grey[..., 0], grey[..., 2])


def test_half_of_tiny_imagenet_is_refused(tiny: Path, opened_as: Open) -> None:
    with pytest.raises(UserError, match=r"tiny-imagenet in .*: 800 train images, not 100,000: it is not the whole set"):
        opened_as("tiny-imagenet", tiny)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("val_9999.JPEG\tn00000001\t0\t0\t7\t7", r"val_9999\.JPEG' is listed, and there is no"),
        ("val_1.JPEG\tn99999999\t0\t0\t7\t7", r"'n99999999' is none of the 200 classes"),
        ("../../etc/passwd\tn00000001", r"is not a path inside"),
        ("val_1.JPEG", r"line 401 has 1 column, not 2"),
        ("val_0.JPEG\tn00000001", r"'val/images/val_0\.JPEG' is listed twice"),
    ],
)
def test_a_wrong_annotation_is_refused_by_name(tiny: Path, opened_as: Open, line: str, message: str) -> None:
    source = tiny / "val" / "val_annotations.txt"
    whole = source.read_text()
    source.write_text(f"{whole}{line}\n")
    try:
        with pytest.raises(UserError, match=rf"val_annotations\.txt: .*{message}"):
            opened_as("tiny-imagenet", tiny, TINY)
    finally:
        source.write_text(whole)


@pytest.fixture
def imagenet(tmp_path: Path, save: Save) -> Path:
    data = save(tmp_path / "one.jpg", size=(4, 4)).read_bytes()
    for number in range(1000):
        for split in ("train", "val"):
            path = tmp_path / "ILSVRC/Data/CLS-LOC" / split / f"n{number:08d}" / f"{split}_{number}.JPEG"
            path.parent.mkdir(parents=True)
            path.write_bytes(data)
    return tmp_path


def test_imagenet_is_tested_on_its_val_folder(imagenet: Path, opened_as: Open) -> None:
    dataset = opened_as("imagenet-1k", imagenet, {"train": 1000, "test": 1000}, split=schema.Split(val=0))
    assert sizes(dataset) == {"train": 1000, "test": 1000}
    assert dataset.test and dataset.test.images.identifiers[3] == "val/n00000003/val_3.JPEG"
    assert dataset.test.labels.tolist() == list(range(1000))
    with pytest.raises(UserError, match=r"1,000 train images, not 1,281,167"):
        opened_as("imagenet-1k", imagenet)


def test_opening_a_published_set_decodes_nothing_unless_broken_images_are_to_be_skipped(
    tiny: Path, opened_as: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def counted(path: Path) -> np.ndarray:
        read.append(path)
        return np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setattr(dataset_module, "read_image", counted)
    assert sum(sizes(opened_as("tiny-imagenet", tiny, TINY)).values()) == 1200
    assert not read
    opened_as("folder", tiny / "train")
    assert len(read) == 800, "a set of the user's own, whose size nobody has published"
    opened_as("tiny-imagenet", tiny, TINY, unreadable="skip")
    assert len(read) == 800 + 1200


def test_imagenet_with_a_flat_val_folder_says_what_to_do(tmp_path: Path, save: Save, opened_as: Open) -> None:
    save(tmp_path / "train" / "n00000000" / "a.JPEG")
    save(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(UserError, match=r"val holds no class folders; as published .* move each into a folder"):
        opened_as("imagenet-1k", tmp_path)


@pytest.fixture
def eurosat(tmp_path: Path, save: Save) -> Path:
    for label, name in enumerate(find("eurosat").names or ()):
        for number in range(1, 5):
            save(tmp_path / "2750" / name / f"{name}_{number}.jpg", 10 * label + number)
    return tmp_path


def test_eurosat_is_split_by_the_configuration(eurosat: Path, opened_as: Open) -> None:
    dataset = opened_as("eurosat", eurosat, {"train": 40}, split=schema.Split(val=0.25, test=0.25))
    assert sizes(dataset) == {"train": 20, "val": 10, "test": 10}
    assert dataset.classes[0] == "AnnualCrop"
    assert set(dataset.test.labels.tolist()) == set(range(10))


def test_eurosat_with_another_class_is_refused_by_name(eurosat: Path, save: Save, opened_as: Open) -> None:
    (eurosat / "2750" / "River").rename(eurosat / "2750" / "Rivers")
    with pytest.raises(UserError, match=r"the classes are not the set's: no 'River'; 'Rivers', which it does not have"):
        opened_as("eurosat", eurosat, {"train": 40})


BUSI = {"benign": 12, "malignant": 8, "normal": 6}


@pytest.fixture
def busi(tmp_path: Path, save: Save) -> Path:
    """BUSI as its archive unpacks: masks among the images; images 2k and 2k + 1 of a class nearly the same."""
    from PIL import Image

    root = tmp_path / "Dataset_BUSI_with_GT"
    for number, (name, count) in enumerate(BUSI.items()):
        for image in range(count):
            seed = 100 * number + image // 2
            smooth = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 6), np.uint8))
            smooth = smooth.resize((60, 50), Image.Resampling.BICUBIC).point(
                lambda level, dim=image % 2: level - 9 * dim
            )
            path = root / name / f"{name} ({image + 1}).png"
            path.parent.mkdir(parents=True, exist_ok=True)
            smooth.convert("RGB").save(path)
            save(path.with_name(f"{name} ({image + 1})_mask.png"), seed, mode="1")
    save(root / "benign" / "benign (4)_mask_1.png", mode="1")
    return tmp_path


def test_busi_s_masks_are_left_out_and_noted(busi: Path, opened_as: Open) -> None:
    dataset = opened_as("busi", busi, {"train": 26}, split=schema.Split(val=0))
    assert np.bincount(dataset.train.labels).tolist() == [12, 8, 6]
    assert not any("_mask" in path for path in dataset.train.images.identifiers)
    masks, groups = dataset.notes
    assert masks.startswith("left out, masks: 27 (benign/benign (1)_mask.png, ")
    assert groups == "26 images in 13 groups, never parted"


def test_busi_s_near_duplicates_are_in_the_same_split(busi: Path, opened_as: Open) -> None:
    dataset = opened_as("busi", busi, {"train": 26}, split=schema.Split(val=0.25, test=0.25))
    of = {path: name for name, split in dataset.splits.items() for path in split.images.identifiers}
    for name, count in BUSI.items():
        for image in range(1, count, 2):
            first, second = (f"{name}/{name} ({number}).png" for number in (image, image + 1))
            assert of[first] == of[second]
    assert sizes(dataset) == {"train": 14, "val": 6, "test": 6}
    apart = opened_as("busi", busi, {"train": 26}, split=schema.Split(val=0.25, test=0.25, group_by="none"))
    assert apart.test and apart.test.images.identifiers != dataset.test.images.identifiers


def test_busi_with_masks_counted_as_images_would_not_be_the_set(busi: Path, opened_as: Open) -> None:
    with pytest.raises(UserError, match=r"busi in .*: 26 train images, not 780"):
        opened_as("busi", busi)
