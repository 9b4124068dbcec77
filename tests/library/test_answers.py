"""What a model says of images, as values: names, probabilities, one answer to one image; and what is shown of them."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from comparing import relative
from library.conftest import CLASSES, SIZE, create
from PIL import Image
from scipy.special import expit, softmax

from mlx_peft.config.tokens import EViT, ToMe
from mlx_peft.core.errors import UserError
from mlx_peft.library.prediction import Prediction, Predictions

TIMM = 1e-5
"""Relative, float32: the same model in another implementation."""


@pytest.fixture
def model(mp):
    return create(mp)


def test_one_image_has_one_answer(model, images, tmp_path):
    file = tmp_path / "a.png"
    Image.fromarray(images[0]).save(file)
    for image in (images[0], Image.fromarray(images[0]), file):
        answer = model.predict(image)
        assert isinstance(answer, Prediction)
        assert answer.image == (str(file) if image is file else None)
        assert answer.name == answer.names[0] == CLASSES[int(answer.logits.argmax())]
        assert answer.probability == pytest.approx(answer.probabilities.max())
    np.testing.assert_allclose(model.predict(images[0]).probabilities, softmax(model.logits(images[:1])[0]), rtol=1e-6)


def test_several_have_as_many_in_their_order(model, images, tmp_path):
    for number in range(3):
        Image.fromarray(images[number]).save(tmp_path / f"{number}.png")
    answers = model.predict(images, batch_size=3)
    assert isinstance(answers, Predictions) and len(answers) == len(images)
    np.testing.assert_allclose(answers.probabilities, softmax(model.logits(images), axis=1), rtol=1e-5)
    assert answers.names == tuple(CLASSES[row] for row in model.logits(images).argmax(1))
    assert [answer.image for answer in model.predict(tmp_path)] == [str(tmp_path / f"{n}.png") for n in range(3)]
    assert isinstance(model.predict([images[0]]), Predictions) and len(model.predict([])) == 0
    assert [one.name for one in answers[2:4]] == list(answers.names[2:4])


def test_the_likeliest_come_first_and_as_many_as_asked(model, images):
    answer = model.predict(images[0], top=2)
    assert len(answer.names) == 2 and len(answer.top(4)) == 4
    assert [p for _, p in answer.top(4)] == sorted(answer.probabilities, reverse=True)


def test_of_several_labels_each_has_a_probability_of_its_own(mp, images):
    model = create(mp, multi_label=True)
    np.testing.assert_allclose(model.predict(images[0]).probabilities, expit(model.logits(images[:1])[0]), rtol=1e-6)


def test_without_names_the_rows_have_numbers(mp, images):
    assert set(create(mp, classes=None, num_classes=4).predict(images).names) <= {"0", "1", "2", "3"}


def test_what_is_shown_is_short(mp, model, images, tmp_path):
    assert repr(model) == f"VisionTransformer(vit_tiny_patch16_224, {SIZE} px, 4 classes (bird, cat, dog, ...))"
    mp.add_adapter(model, mp.LoRA(rank=4))
    assert repr(model).endswith("LoRA(rank=4))")
    mp.save_adapter(model, tmp_path / "adapter")
    shown = [model, mp.load_adapter(create(mp), tmp_path / "adapter"), mp.state_dict(model), mp.summary(model)]
    shown += [model.predict(images), model.predict(np.repeat(images, 9, axis=0)), mp.merge(model), mp.LoRA()]
    for value in shown:
        assert len(repr(value).splitlines()) <= 12 and max(map(len, repr(value).splitlines())) <= 160, repr(value)
    assert repr(model.predict(np.repeat(images, 9, axis=0))).endswith("and 62 more")


def test_a_file_that_is_none_is_named(model, tmp_path):
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"a\.png: not a readable image"):
        model.predict(tmp_path / "a.png")


def test_preparing_is_what_predicting_sees(mp, model, images):
    with torch.no_grad():
        logits = np.asarray(model(mp.prepare(model, images)))
    np.testing.assert_allclose(logits, model.logits(images), rtol=1e-6)
    assert tuple(mp.prepare(model, images[0]).shape) == (1, SIZE, SIZE, 3)
    assert tuple(mp.prepare(model, images.transpose(0, 3, 1, 2), layout="NCHW").shape) == images.shape
    with pytest.raises(UserError, match="normalised already"):
        mp.prepare(model, np.asarray(mp.prepare(model, images)))
    with pytest.raises(UserError, match="no images to prepare"):
        mp.prepare(model, [])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("vit_tiny_patch16_224", {"global_pool": "avg"}),
        ("vit_tiny_patch16_224", {"global_pool": "map", "class_token": False}),
        ("vit_tiny_patch16_224", {"reg_tokens": 4}),
    ],
    ids=str,
)
def test_features_and_heads_are_timms(mp, images, name, options):
    args = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, **options}
    model = create(mp, name, args=args)
    theirs = timm.create_model(name, num_classes=4, img_size=SIZE, **args).eval()
    theirs.load_state_dict({name: torch.from_numpy(np.asarray(t)) for name, t in mp.state_dict(model).items()})
    x = mp.prepare(model, images)
    with torch.no_grad():
        tokens = theirs.forward_features(torch.tensor(np.asarray(x)).permute(0, 3, 1, 2))
        pairs = [(model.forward_features(x), torch.stack(tokens, 1) if isinstance(tokens, tuple) else tokens)]
        for pre_logits in (False, True):
            head = theirs.forward_head(tokens, pre_logits=pre_logits)
            pairs.append((model.forward_head(model.forward_features(x), pre_logits), head))
        for found, expected in pairs:
            assert relative(np.asarray(found), expected.numpy()) <= TIMM


@pytest.mark.parametrize("pooling", ["token", "avg", "map"])
@pytest.mark.parametrize("tokens", [ToMe(r=3), EViT(keep=0.5, blocks=(1,))], ids=str)
def test_of_fewer_tokens_the_head_makes_the_models_logits_or_none(mp, images, pooling, tokens):
    """A mean over merged tokens needs to know what each stands for, which an array of them does not say."""
    args = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "global_pool": pooling}
    model = create(mp, args=args, tokens=tokens)
    x = mp.prepare(model, images)
    features = model.forward_features(x)
    assert features.shape[1] < 1 + 16
    if pooling != "token" and tokens == ToMe(r=3):
        with pytest.raises(UserError, match=r"forward_head cannot pool tokens that tome has merged.*model\(x\)"):
            model.forward_head(features)
    else:
        assert relative(np.array(model.forward_head(features).tolist()), model.logits(images)) <= TIMM
