"""Images that may have several classes: what is counted, held out and shown, and what becomes of them in a batch."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from mlx_peft.config import schema
from mlx_peft.data import ArrayImages, Split, eval_batches, train_batches
from mlx_peft.data.check import survey
from mlx_peft.data.dataset import Dataset
from mlx_peft.data.sheet import contact_sheet
from mlx_peft.data.splits import hold_out
from mlx_peft.report.preview import Shown, caption
from mlx_peft.tasks.multi_label import MULTI_LABEL
from mlx_peft.tasks.single_label import SINGLE_LABEL
from mlx_peft.vit.architecture import Preprocessing

CLASSES = ("effusion", "mass", "nodule")
LABELS = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 1], [1, 1, 1], [0, 0, 0]], np.uint8)
RECIPE = Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", crop_pct=1.0)


def made(labels: np.ndarray, name: str = "train", seed: int = 0) -> Split:
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 8, 8), np.uint8)
    return Split(name, ArrayImages.whole(pixels, name), labels, task=MULTI_LABEL if labels.ndim == 2 else SINGLE_LABEL)


def data(**options: Any) -> schema.Data:
    return schema.Data(name="made", threads=1, **({"batch_size": 4} | options))


def test_labels_say_what_an_image_has() -> None:
    one, single, several = np.array([2, 0, 2]), SINGLE_LABEL, MULTI_LABEL
    assert several.counts(LABELS, 3).tolist() == [3, 2, 2]
    assert single.counts(one, 3).tolist() == [1, 0, 2]
    assert several.rows_of(LABELS, 1).tolist() == [2, 4]
    assert single.rows_of(one, 2).tolist() == [0, 2]
    assert (several.rows_of_none(LABELS).tolist(), single.rows_of_none(one)) == ([0, 5], None)
    assert [several.named(row, CLASSES) for row in LABELS[:3]] == ["none of them", "effusion", "effusion, mass"]
    assert (single.named(one[0], CLASSES), single.written(one[0]), several.written(LABELS[2])) == ("nodule", "2", "110")
    assert several.differ(LABELS, LABELS[0]).tolist() == [False, True, True, True, True, False]
    assert single.differ(one, one[0]).tolist() == [False, True, False]
    assert single.fault(np.array([0, 3]), 3) == "labels 0 to 3, not 0 to 2"
    assert several.fault(LABELS * 2, 3) == several.fault(one, 3) == "labels are not 3 times 0 or 1"
    assert single.fault(one, 3) is several.fault(LABELS, 3) is None


def test_a_batch_has_the_absence_and_the_presence_of_each_class() -> None:
    first, last = eval_batches(made(LABELS), data(class_weights="balanced"), RECIPE, 8)
    assert (first.targets.dtype, first.targets.shape) == (np.float32, (4, 3, 2))
    assert np.array_equal(first.targets[..., 1], LABELS[:4])
    assert np.array_equal(first.targets[..., 0], 1 - LABELS[:4])
    assert not last.targets[2:].any(), "rows that fill up"


def test_each_class_is_balanced_between_the_images_that_have_it_and_those_that_lack_it() -> None:
    batches = train_batches(made(LABELS), data(class_weights="balanced", batch_size=6), RECIPE, 8, seed=0, epoch=0)
    (batch,) = batches
    for label in range(3):
        expected = compute_class_weight("balanced", classes=np.array([0, 1]), y=LABELS[:, label])
        present = batch.targets[:, label, 1]
        assert batch.targets[:, label].sum(axis=0) == pytest.approx([3, 3])
        assert present[present > 0] == pytest.approx(expected[1])
    assert batch.targets.sum() == pytest.approx(18), "all answers together count as many as they are"


def test_mixed_images_have_shares_of_their_classes() -> None:
    config = data(batch_size=6, augment={"mixup": 1.0})
    (batch,) = train_batches(made(LABELS), config, RECIPE, 8, seed=1, epoch=0)
    assert batch.targets.sum(axis=2) == pytest.approx(1)
    assert ((batch.targets > 0.01) & (batch.targets < 0.99)).any()


def test_held_out_images_have_as_many_classes_as_the_others() -> None:
    labels = np.repeat(np.array([[0, 0, 0], [1, 0, 0], [1, 0, 1], [1, 1, 1]], np.uint8), [40, 20, 20, 10], axis=0)
    train = made(labels)
    found = hold_out("made", CLASSES, train, schema.Split(val=0.1, test=0.2, seed=3))
    assert found.val and found.test
    assert np.bincount(found.val.labels.sum(1)).tolist() == [4, 2, 2, 1]
    assert np.bincount(found.test.labels.sum(1)).tolist() == [8, 4, 4, 2]
    again = hold_out("made", CLASSES, train, schema.Split(val=0.1, test=0.2, seed=3))
    assert again.val and again.val.sha256 == found.val.sha256
    grouped = Split("train", train.images, labels, np.arange(90) // 2, MULTI_LABEL)
    parted = hold_out("made", CLASSES, grouped, schema.Split(val=0.2, seed=0))
    assert parted.val and not np.intersect1d(parted.val.groups, parted.train.groups).size


def test_a_survey_counts_every_class_and_finds_copies_that_say_something_else() -> None:
    train = made(LABELS)
    pixels = train.images.pixels.copy()  # type: ignore[attr-defined]
    pixels[5] = pixels[2]
    train = Split("train", ArrayImages.whole(pixels, "train"), LABELS, task=MULTI_LABEL)
    found = survey(Dataset("made", CLASSES, train, made(LABELS[:2], "val", 1), None), 1)
    report = found.report()
    assert report["splits"]["train"]["by_class"] == {"effusion": 3, "mass": 2, "nodule": 2, "none of them": 2}
    (pair,) = report["equal_with_another_label"]["pairs"]
    assert [image["class"] for image in pair] == ["none of them", "effusion, mass"]
    single = Dataset("made", CLASSES, made(np.arange(6) % 3), made(np.arange(2), "val", 1), None)
    assert contact_sheet(found).height * 3 == contact_sheet(survey(single, 1)).height * 4, "a row for those without"
    json.dumps(report)


def test_a_preview_says_what_an_image_has() -> None:
    def shown(target: np.ndarray) -> str:
        shares, weight = MULTI_LABEL.shares(target, 3)
        return caption(Shown(np.zeros((1, 1, 3)), {CLASSES[n]: shares[n] for n in np.flatnonzero(shares)}, weight))

    targets = np.eye(2, dtype=np.float32)[LABELS]
    assert [shown(target) for target in targets[:3]] == ["none of them", "effusion", "effusion\nmass"]
    assert shown(0.75 * targets[0] + 0.25 * targets[2]) == "0.25 effusion\n0.25 mass"
    assert shown(2 * targets[1]) == "effusion\nweight 2.00"
    assert SINGLE_LABEL.shares(np.array(2, np.int32), 3)[0].tolist() == [0, 0, 1]
