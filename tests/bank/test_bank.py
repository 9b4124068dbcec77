"""A bank has adapters by name: which there are, which one answers, what goes in and out."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from banks import SAME, SIDES, SIZE, adapter, alone, base_of, network, pixels
from PIL import Image

from convert.adapters.peft import write_adapter
from mlx_peft.config.methods import LoRA
from mlx_peft.core.errors import UserError
from mlx_peft.data.recipe import eval_image
from mlx_peft.library import entries
from mlx_peft.library.passes import Passes
from mlx_peft.library.prediction import Prediction, Predictions


def test_it_lists_what_the_folder_has_in_order_each_with_what_it_says_of_itself(opened, few):
    bank = opened()
    assert bank.names == tuple(bank) == tuple(few.names) and len(bank) == 7 and few.names[0] in bank
    entry = bank["01-lora"]
    assert entry.adapter.method == LoRA(rank=4) and entry.classes == ("class 0", "class 1", "class 2")
    assert bank["03-lora"].adapter.task.name == "multi_label_classification"
    first, *lines = repr(bank).splitlines()
    assert first == "Bank(7 adapters, 0 in memory, 0 bytes)"
    assert lines[1] == "  01-lora: LoRA(rank=4), 3 classes (class 0, class 1, class 2)"


def test_opening_reads_no_tensor_and_asking_reads_only_those_that_are_asked(opened, few, monkeypatch):
    read, places = entries.read_adapter, []
    monkeypatch.setattr(entries, "read_adapter", lambda place: places.append(place) or read(place))
    bank = opened()
    assert not places and bank.nbytes == 0 and bank.resident == ()
    bank.logits(pixels(3), [few.names[2], None, few.names[0]])
    assert sorted(places) == [few.folder / few.names[0], few.folder / few.names[2]]
    bank.logits(pixels(1), few.names[2])
    assert len(places) == 2 and bank.resident == (few.names[0], few.names[2])


def test_the_active_adapter_answers_where_no_name_is_given(opened, few, side):
    bank, images = opened(), pixels(2)
    bare = bank.logits(images)
    bank.set_adapter(few.names[1])
    expected = alone(side, few.base, few.adapters[few.names[1]], images)
    np.testing.assert_allclose(np.stack(bank.logits(images)), expected, rtol=0, atol=SAME)
    bank.set_adapter(None)
    assert np.array_equal(np.stack(bank.logits(images)), np.stack(bare))


def test_predictions_have_each_adapter_s_own_classes_and_task(opened, few, tmp_path: Path):
    bank, images = opened(), pixels(3)
    names = [few.names[0], few.names[1], few.names[6]]  # several labels, one, one
    answers = bank.predict(images, names)
    assert isinstance(answers, Predictions)
    assert [len(answer.classes) for answer in answers] == [2, 3, 8]
    for answer, logits, name in zip(answers, bank.logits(images, names), names, strict=True):
        assert np.array_equal(answer.logits, logits) and answer.task == bank[name].adapter.task
    several, one, _ = answers
    assert one.probabilities.sum() == pytest.approx(1)
    np.testing.assert_allclose(several.probabilities, 1 / (1 + np.exp(-several.logits)))
    file = tmp_path / "a.png"
    Image.fromarray(images[1]).save(file)
    single = bank.predict(images[1], few.names[1])
    assert isinstance(single, Prediction)
    np.testing.assert_allclose(single.logits, one.logits, rtol=0, atol=SAME)
    assert bank.predict(file, few.names[1]).image == str(file)
    mixed = bank.predict(images[:2], [None, few.names[1]], batch_size=1)
    assert isinstance(mixed[0], np.ndarray) and isinstance(mixed[1], Prediction)


def test_each_image_is_cropped_as_those_that_its_adapter_was_trained_on(side, tmp_path: Path):
    base = base_of()
    squashed = base.preprocessing.model_copy(update={"crop_mode": "squash", "crop_pct": 1.0})
    for name, recipe in (("center", base.preprocessing), ("squash", squashed)):
        write_adapter(tmp_path / name, replace(adapter(base, LoRA(rank=2), 0), preprocessing=recipe))
    image = np.random.default_rng(1).integers(0, 256, (50, 80, 3), dtype=np.uint8)
    bank = SIDES[side].load_adapters(network(side), tmp_path)
    answers = bank.predict([image, image], ["center", "squash"])
    seen = np.stack([eval_image(image, recipe, SIZE) for recipe in (base.preprocessing, squashed)])
    np.testing.assert_allclose(
        [answer.logits for answer in answers], bank.logits(seen, ["center", "squash"]), rtol=0, atol=SAME
    )
    assert np.abs(answers[0].logits - answers[1].logits).max() > 100 * SAME


def test_one_is_added_replaced_and_removed(opened, few, side, tmp_path: Path):
    bank, images = opened(), pixels(2)
    own = [adapter(few.base, LoRA(rank=rank), rank, classes=4) for rank in (1, 9)]
    write_adapter(tmp_path / "run" / "adapter", own[0])
    write_adapter(tmp_path / "other", own[1])
    for added, place in zip(own, (tmp_path / "run", tmp_path / "other"), strict=True):
        entry = bank.add(place, "mine")
        assert entry.rows == 4 and "mine" in bank
        found = bank.logits(images, ["mine", few.names[0]])
        np.testing.assert_allclose(found[0], alone(side, few.base, added, images)[0], rtol=0, atol=SAME)
    bank.set_adapter("mine")
    bank.remove("mine")
    assert "mine" not in bank and "mine" not in bank.resident and bank.active is None
    with pytest.raises(UserError, match="no adapter 'mine'"):
        bank.logits(images, "mine")
    assert bank.add(tmp_path / "other").name == "other"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["00-lora"], "there are 2 images, and 1 name of adapters"),
        (["00-lora", "00-lorra"], r"no adapter '00-lorra'; it has 7; did you mean '0\d-lora'"),
        (["00-lora", "../few/00-lora"], "should be text without slashes"),
        ("/etc/passwd", "should be text without slashes"),
        ("", "should be text without slashes"),
    ],
)
def test_a_name_that_is_none_is_refused(opened, names, words):
    bank = opened()
    with pytest.raises(UserError, match=words):
        bank.logits(pixels(2), names)
    with pytest.raises(UserError, match=words):
        bank.predict(pixels(2), names)


@pytest.mark.parametrize("size", [0, -1, 2.5, "4", True, None])
def test_a_number_of_images_that_is_none_is_refused(opened, few, side, size):
    bank, images = opened(), pixels(2)
    for ask in (bank.logits, bank.features, bank.predict):
        with pytest.raises(UserError, match="batch_size should be a number of images, such as 64, not"):
            ask(images, few.names[0], batch_size=size)
    with pytest.raises(UserError, match="batch_size should be a number of images, such as 64, not"):
        network(side).predict(images, batch_size=size)
    assert len(bank.logits(images, few.names[0], batch_size=np.int64(1))) == 2


def test_a_model_with_a_method_has_no_bank(side, few):
    model = network.__wrapped__(side)
    SIDES[side].add_adapter(model, LoRA(rank=1))
    with pytest.raises(UserError, match=r"has the method 'lora'.*remove_adapter"):
        SIDES[side].load_adapters(model, few.folder)


@pytest.mark.parametrize(
    ("inside", "words"),
    [
        (None, "is not a folder of adapters"),
        ("notes.txt", "holds no adapters"),
        ("adapter_config.json", "is one adapter"),
    ],
)
def test_a_folder_that_has_no_adapters_is_refused(side, tmp_path, inside, words):
    folder = tmp_path / "folder"
    if inside is not None:
        folder.mkdir()
        (folder / inside).write_text("{}")
    with pytest.raises(UserError, match=words):
        SIDES[side].load_adapters(network(side), folder)


def test_the_model_stays_as_it_was(side, few):
    model, images = network.__wrapped__(side), pixels(2)
    before, names = model.logits(images), list(SIDES[side].state_dict(model))
    bank = SIDES[side].load_adapters(model, few.folder)
    bank.logits(images, few.names[:2])
    assert np.array_equal(model.logits(images), before) and list(SIDES[side].state_dict(model)) == names
    SIDES[side].add_adapter(model, LoRA(rank=1))  # which wraps layers of the model, and none of the bank's
    assert np.isfinite(bank.logits(images, few.names[2])).all()


def test_threads_that_ask_at_once_get_each_its_own_answers(opened, few):
    bank, images = opened(), pixels(2)
    expected = {name: np.stack(bank.logits(images, name)) for name in few.names}
    wrong: list[str] = []

    def ask(name: str) -> None:
        for _ in range(5):
            if not np.allclose(np.stack(bank.logits(images, name)), expected[name], rtol=0, atol=SAME):
                wrong.append(name)

    threads = [threading.Thread(target=ask, args=(name,)) for name in few.names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_what_is_changed_while_it_is_asked_answers_once_more_as_it_was(
    opened, few, tmp_path, when, change, monkeypatch
):
    """As by another thread, just before or after the pass of the first of two batches."""
    bank, images, (name, *_) = opened(), pixels(2), few.names
    before = bank.predict(images, name)
    write_adapter(tmp_path / "other", adapter(few.base, LoRA(rank=2), 9, classes=5))
    answered = Passes.answered

    def meddling(self, *arguments):
        monkeypatch.undo()
        found = answered(self, *arguments) if when == "after" else None
        bank.remove(name) if change == "removed" else bank.add(tmp_path / "other", name)
        return found or answered(self, *arguments)

    monkeypatch.setattr(Passes, "answered", meddling)
    for one, expected in zip(bank.predict(images, name, batch_size=1), before, strict=True):
        assert one.names == expected.names
        np.testing.assert_allclose(one.logits, expected.logits, rtol=0, atol=SAME)
    assert name not in bank.resident or change == "replaced"
    if change == "replaced":
        assert len(bank.predict(images, name)[0].probabilities) == len(bank[name].classes) == 5


def test_an_adapter_that_peft_wrote_for_the_model_is_answered_with(side, tmp_path: Path):
    """It says neither which base it was trained on nor what its classes are called."""
    base = base_of()
    own = adapter(base, LoRA(rank=3, targets=("qkv", "fc1")), 0)
    write_adapter(tmp_path / "theirs", own)
    without_metadata(tmp_path / "theirs")
    bank, images = SIDES[side].load_adapters(network(side), tmp_path), pixels(2)
    assert bank["theirs"].classes == ("0", "1", "2")
    np.testing.assert_allclose(
        np.stack(bank.logits(images, "theirs")), alone(side, base, own, images), rtol=0, atol=SAME
    )


def without_metadata(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    file = folder / "adapter_model.safetensors"
    save_file(load_file(file), file)


def test_features_are_what_each_adapter_s_head_reads(opened, few):
    bank, images = opened(), pixels(3)
    names = [few.names[2], None, few.names[6]]
    found, logits = bank.features(images, names), bank.logits(images, names)
    assert found.dtype == np.float32 and found.shape == (3, base_of().architecture.embed_dim)
    assert np.array_equal(found[1], logits[1])
    for at in (0, 2):
        weight, bias = (few.adapters[names[at]].tensors[f"head.{name}"] for name in ("weight", "bias"))
        np.testing.assert_allclose(found[at] @ weight.T + bias, logits[at], rtol=0, atol=SAME)
    assert bank.features(images[:0]).shape == (0, found.shape[1])


def test_there_is_no_array_of_probabilities_of_different_classes(opened, few):
    answers = opened().predict(pixels(2), [few.names[0], few.names[1]])
    with pytest.raises(UserError, match="not all about the same classes"):
        _ = answers.probabilities
    assert answers[:1].probabilities.shape == (1, 2)
