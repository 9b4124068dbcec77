"""Sets whose files list their images: DTD, Food-101, the pets, the flowers, VTAB-1k."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.data import REGISTRY, Dataset
from mlx_peft.data.sets import vtab

Open = Callable[..., Dataset]
Save = Callable[..., Path]


def sizes(dataset: Dataset) -> dict[str, int]:
    return {name: split.size for name, split in dataset.splits.items()}


TEXTURES = tuple(f"texture{number:02d}" for number in range(47))


@pytest.fixture
def dtd(tmp_path: Path, save: Save) -> Path:
    root = tmp_path / "dtd" / "dtd"
    for label, name in enumerate(TEXTURES):
        for number in range(3):
            save(root / "images" / name / f"{name}_{number:04d}.jpg", 3 * label + number)
    (root / "labels").mkdir()
    for partition in range(1, 11):
        for place, split in enumerate(("train", "val", "test")):
            lines = [f"{name}/{name}_{(place + partition) % 3:04d}.jpg" for name in TEXTURES]
            (root / "labels" / f"{split}{partition}.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_dtd_s_partitions_are_its_variants(dtd: Path, opened_as: Open) -> None:
    whole = dict.fromkeys(("train", "val", "test"), 47)
    first, tenth = opened_as("dtd", dtd, whole), opened_as("dtd", dtd, whole, variant=10)
    assert sizes(first) == whole
    assert first.classes == TEXTURES
    assert first.train.images.identifiers[0] == "images/texture00/texture00_0001.jpg"
    assert first.test and first.test.labels.tolist() == list(range(47))
    assert first.train.sha256 == tenth.train.sha256, "10 and 1 are the same modulo 3, as the fixture has it"
    assert opened_as("dtd", dtd, whole, variant="2").train.sha256 != first.train.sha256
    with pytest.raises(UserError, match=r"data\.variant: dtd has no variant '11'; did you mean"):
        opened_as("dtd", dtd, variant="11")


def test_an_image_in_two_splits_is_refused_by_name(dtd: Path, opened_as: Open) -> None:
    lists = dtd / "dtd" / "dtd" / "labels"
    (lists / "test1.txt").write_text((lists / "train1.txt").read_text())
    with pytest.raises(UserError, match=r"'images/texture00/texture00_0001\.jpg'.* and 44 more in train and in test"):
        opened_as("dtd", dtd, dict.fromkeys(("train", "val", "test"), 47))


DISHES = tuple(f"dish_{number:03d}" for number in range(101))


@pytest.fixture
def food(tmp_path: Path, save: Save) -> Path:
    root = tmp_path / "food-101"
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for label, name in enumerate(DISHES):
        for number in range(3):
            save(root / "images" / name / f"{1000 * label + number}.jpg", 3 * label + number)
            lists["test" if number == 2 else "train"].append(f"{name}/{1000 * label + number}")
    (root / "meta").mkdir()
    (root / "meta" / "classes.txt").write_text("\n".join(DISHES))
    for split, lines in lists.items():
        (root / "meta" / f"{split}.txt").write_text("\n".join(lines) + "\n")
        by_class = {name: [line for line in lines if line.startswith(f"{name}/")] for name in DISHES}
        (root / "meta" / f"{split}.json").write_text(json.dumps(by_class))
    return root


def test_food_has_its_published_test_images(food: Path, opened_as: Open) -> None:
    dataset = opened_as("food-101", food, {"train": 202, "test": 101}, split=schema.Split(val=0.5))
    assert sizes(dataset) == {"train": 101, "val": 101, "test": 101}
    assert dataset.classes == DISHES
    assert dataset.test and dataset.test.images.identifiers[5] == "images/dish_005/5002.jpg"
    assert dataset.test.images.read(5).shape == (8, 10, 3)


def test_food_without_a_class_is_refused(food: Path, opened_as: Open) -> None:
    (food / "meta" / "classes.txt").write_text("\n".join(DISHES[1:]))
    with pytest.raises(UserError, match=r"train\.txt: 'dish_000' is none of the 100 classes"):
        opened_as("food-101", food)


BREEDS = tuple(f"{'Abys' if number % 2 else 'beagle'}_{chr(97 + number // 2)}" for number in range(37))


@pytest.fixture
def pets(tmp_path: Path, save: Save) -> Path:
    """As unpacked: some images are grey, have an alpha channel or another format under the name of a JPEG."""
    root = tmp_path / "oxford-iiit-pet"
    kinds = ({}, {"mode": "L"}, {"mode": "RGBA", "format": "PNG"}, {"mode": "P", "format": "GIF"})
    lists: dict[str, list[str]] = {"trainval": [], "test": []}
    for label, name in enumerate(BREEDS):
        for number in range(1, 4):
            save(root / "images" / f"{name}_{number}.jpg", 3 * label + number, **kinds[(label + number) % 4])
            lists["test" if number == 3 else "trainval"].append(f"{name}_{number} {label + 1} {1 + label % 2} 1")
    (root / "images" / f"{BREEDS[0]}_1.mat").write_bytes(b"MATLAB 5.0")
    (root / "annotations").mkdir()
    for split, lines in lists.items():
        (root / "annotations" / f"{split}.txt").write_text("\n".join(lines) + "\n")
    (root / "annotations" / "list.txt").write_text("#Image CLASS-ID SPECIES BREED ID\n")
    return root


def test_the_pets_are_read_whatever_their_files_are(pets: Path, opened_as: Open) -> None:
    dataset = opened_as("oxford-iiit-pet", pets, {"train": 74, "test": 37}, split=schema.Split(val=0))
    assert sizes(dataset) == {"train": 74, "test": 37}
    assert dataset.classes == BREEDS
    assert dataset.train.labels[:4].tolist() == [0, 0, 1, 1]
    assert all(dataset.train.images.read(row).shape == (8, 10, 3) for row in range(74))


def test_a_class_of_two_breeds_is_refused(pets: Path, opened_as: Open) -> None:
    source = pets / "annotations" / "test.txt"
    source.write_text(source.read_text().replace(f"{BREEDS[4]}_3 5 ", f"{BREEDS[4]}_3 4 "))
    with pytest.raises(UserError, match=rf"test\.txt: class 4 has two names, '{BREEDS[3]}' and '{BREEDS[4]}'"):
        opened_as("oxford-iiit-pet", pets)
    source.write_text("# image class\nAbyssinian_1 99999999999999999999 1 1\n")
    with pytest.raises(
        UserError,
        match=r"test\.txt: line 2: the label should be a whole number of at most 18 digits, not '99999999999999999999'",
    ):
        opened_as("oxford-iiit-pet", pets)


@pytest.fixture
def flowers(tmp_path: Path, save: Save) -> Path:
    root = tmp_path / "flowers-102"
    count = 3 * 102
    for number in range(1, count + 1):
        save(root / "jpg" / f"image_{number:05d}.jpg", number)
    labels = 1 + np.arange(count) % 102
    savemat(root / "imagelabels.mat", {"labels": labels[None].astype(np.uint8)})
    ids = {key: np.arange(1, 103)[None] + 102 * place for place, key in enumerate(("trnid", "valid", "tstid"))}
    savemat(root / "setid.mat", {key: value.astype(np.uint16) for key, value in ids.items()}, do_compression=True)
    return root


FLOWERS = dict.fromkeys(("train", "val", "test"), 102)


def test_the_flowers_are_labelled_by_matlab_s_files(flowers: Path, opened_as: Open) -> None:
    dataset = opened_as("oxford-flowers102", flowers, FLOWERS)
    assert sizes(dataset) == FLOWERS
    assert dataset.val and dataset.val.images.identifiers[0] == "jpg/image_00103.jpg"
    assert dataset.val.labels.tolist() == list(range(102))
    assert (dataset.classes[0], dataset.classes[101]) == ("1", "102")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("setid.mat", {"trnid": [[1]], "valid": [[2]]}, "no array 'tstid'"),
        (
            "setid.mat",
            {"trnid": [[400]], "valid": [[2]], "tstid": [[3]]},
            "trnid should name images 1 to 306, and names 400 to 400",
        ),
        ("setid.mat", {"trnid": [[1.5]], "valid": [[2]], "tstid": [[3]]}, "'trnid' does not hold whole numbers"),
        ("setid.mat", {"trnid": "rm -r", "valid": [[2]], "tstid": [[3]]}, "'trnid' is char .*, not an array of whole"),
        ("imagelabels.mat", {"labels": np.array([{"a": 1}], object)}, "'labels' is cell .*, not an array of whole"),
    ],
)
def test_a_matlab_file_that_is_not_the_flowers_is_refused(
    flowers: Path, opened_as: Open, name: str, content: dict[str, object], message: str
) -> None:
    savemat(flowers / name, content)
    with pytest.raises(UserError, match=rf"{name}: {message}"):
        opened_as("oxford-flowers102", flowers)


@pytest.mark.parametrize("name", ["dtd", "oxford-flowers102", "oxford-iiit-pet", "food-101"])
def test_torchvision_reads_the_same_images_and_labels_in_the_same_files(
    name: str, request: pytest.FixtureRequest, opened_as: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the layouts of the fixtures are those of the published archives, and the labels are theirs."""
    from torchvision import datasets

    monkeypatch.setattr("torchvision.datasets.flowers102.check_integrity", lambda path, md5: Path(path).exists())
    fixture, theirs, splits = {
        "dtd": ("dtd", datasets.DTD, {"train": "train", "val": "val", "test": "test"}),
        "oxford-flowers102": ("flowers", datasets.Flowers102, {"train": "train", "val": "val", "test": "test"}),
        "oxford-iiit-pet": ("pets", datasets.OxfordIIITPet, {"train": "trainval", "test": "test"}),
        "food-101": ("food", datasets.Food101, {"train": "train", "test": "test"}),
    }[name]
    root = request.getfixturevalue(fixture)
    root = root if name == "dtd" else root.parent
    dataset = opened_as(name, root, {}, split=schema.Split(val=0))
    for split, called in splits.items():
        ours, other = dataset.splits[split], theirs(root, split=called)
        assert ours.size == len(other)
        found: dict[bytes, int] = {}
        for image, label in (other[row] for row in range(len(other))):
            found[np.asarray(image.convert("RGB")).tobytes()] = label
        images = [ours.images.read(row).tobytes() for row in range(ours.size)]
        assert all(found[image] == label for image, label in zip(images, ours.labels, strict=True))


@pytest.fixture
def eurosat_task(tmp_path: Path, save: Save) -> Path:
    """A VTAB-1k task: its images numbered by split, its lists relative to it, train800val200 of both."""
    root = tmp_path / "vtab-1k" / "eurosat"
    lists: dict[str, list[str]] = {name: [] for name in ("train800", "val200", "train800val200", "test")}
    for split, count in (("train800val200", 25), ("test", 30)):
        for number in range(count):
            save(root / "images" / split / f"{number:06d}.jpg", number + 100 * (split == "test"))
            line = f"images/{split}/{number:06d}.jpg {number % 10}"
            lists[split].append(line)
            if split != "test":
                lists["train800" if number < 20 else "val200"].append(line)
    for name, lines in lists.items():
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_a_vtab_task_is_tuned_without_its_test_and_then_trained_on_all(eurosat_task: Path, opened_as: Open) -> None:
    tune = opened_as("vtab-1k:eurosat", eurosat_task, {"train": 20, "val": 5})
    assert sizes(tune) == {"train": 20, "val": 5}
    final = opened_as("vtab-1k:eurosat", eurosat_task, {"train": 25, "test": 30}, variant="final")
    assert sizes(final) == {"train": 25, "test": 30}
    assert final.classes == tuple("0123456789")
    assert final.test and final.test.images.identifiers[3] == "images/test/000003.jpg"
    inside = eurosat_task / "vtab-1k" / "eurosat"
    assert opened_as("vtab-1k:eurosat", inside, {"train": 20, "val": 5}).train.sha256 == tune.train.sha256


@pytest.mark.parametrize("share", ["val", "test"])
def test_shares_that_a_variant_fixes_cannot_be_asked_for(eurosat_task: Path, opened_as: Open, share: str) -> None:
    message = rf"data\.split\.{share} is 0\.5, but the variant tune of vtab-1k:eurosat fixes what is held out"
    with pytest.raises(UserError, match=message):
        opened_as("vtab-1k:eurosat", eurosat_task, {"train": 20, "val": 5}, split=schema.Split(**{share: 0.5}))
    # A run's own configuration has every default written down, and must open again.
    written = schema.Split.model_validate_json(schema.Split(seed=3).model_dump_json())
    assert opened_as("vtab-1k:eurosat", eurosat_task, {"train": 20, "val": 5}, split=written).train.size == 20


def test_tuning_a_vtab_task_never_opens_the_test_list(eurosat_task: Path, opened_as: Open) -> None:
    (eurosat_task / "vtab-1k/eurosat/test.txt").unlink()
    assert opened_as("vtab-1k:eurosat", eurosat_task, {"train": 20, "val": 5}).test is None
    with pytest.raises(UserError, match=r"test\.txt: cannot be read"):
        opened_as("vtab-1k:eurosat", eurosat_task, variant="final")


def test_a_label_beyond_the_classes_is_refused(eurosat_task: Path, opened_as: Open) -> None:
    source = eurosat_task / "vtab-1k/eurosat/val200.txt"
    source.write_text(source.read_text().replace(".jpg 4\n", ".jpg 10\n"))
    with pytest.raises(UserError, match=r"vtab-1k:eurosat in .*: val labels 0 to 10, not 0 to 9"):
        opened_as("vtab-1k:eurosat", eurosat_task, {"train": 20, "val": 5})
    source.write_text("images/train800val200/000001.jpg four\n")
    with pytest.raises(
        UserError, match=r"val200\.txt: line \d+: the label should be a whole number of at most 18 digits, not 'four'"
    ):
        opened_as("vtab-1k:eurosat", eurosat_task)
    source.write_text("images/val/0.png 99999999999999999999\n")
    with pytest.raises(
        UserError, match=r"val200\.txt: line 1: the label should be a whole number of at most 18 digits, not '9{20}'"
    ):
        opened_as("vtab-1k:eurosat", eurosat_task)


def test_another_task_is_not_taken_for_the_one_that_is_named(eurosat_task: Path, opened_as: Open) -> None:
    folder = eurosat_task / "vtab-1k" / "eurosat"
    with pytest.raises(UserError, match=r"eurosat holds a task, .*the folder of vtab-1k:svhn must be called svhn"):
        opened_as("vtab-1k:svhn", folder, {"train": 20, "val": 5})
    folder.rename(folder.with_name("dtd"))
    with pytest.raises(UserError, match=r"training images end at 9, and dtd has 47 classes"):
        opened_as("vtab-1k:dtd", eurosat_task, {"train": 20, "val": 5})


def test_a_root_that_is_a_link_called_after_the_task_is_the_task(eurosat_task: Path, opened_as: Open) -> None:
    folder = eurosat_task / "vtab-1k" / "eurosat"
    folder.rename(eurosat_task / "downloaded")
    link = eurosat_task / "eurosat"
    link.symlink_to(eurosat_task / "downloaded")
    assert sizes(opened_as("vtab-1k:eurosat", link, {"train": 20, "val": 5})) == {"train": 20, "val": 5}


def test_vtab_has_19_tasks_in_three_groups_of_published_sizes() -> None:
    groups = [task.group for task in vtab.TASKS.values()]
    assert [groups.count(group) for group in vtab.GROUPS] == [7, 4, 8]
    for name, task in vtab.TASKS.items():
        tune, final = REGISTRY[f"vtab-1k:{name}"].variants
        assert (tune.sizes, final.sizes) == ({"train": 800, "val": 200}, {"train": 1000, "test": task.test})
