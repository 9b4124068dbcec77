"""What stands where among a model's tokens."""

import pytest

from mlx_peft.vit.architecture import Architecture
from mlx_peft.vit.places import Places

PLACES = Places((("class", 1), ("register", 4), ("patch", 9)))


def test_a_model_has_its_special_tokens_before_its_patches():
    architecture = Architecture(img_size=48, distilled=True, reg_tokens=2)
    assert architecture.places.runs == (("class", 1), ("distillation", 1), ("register", 2), ("patch", 9))
    assert len(architecture.places) == 13 and architecture.num_prefix_tokens == 4
    assert architecture.kinds_read == ("class", "distillation") and architecture.tokens_read == 2
    bare = Architecture(img_size=48, class_token=False, global_pool="avg")
    assert bare.places.runs == (("patch", 9),) and bare.kinds_read is bare.tokens_read is None


def test_neighbours_are_taken_as_one_span():
    assert PLACES.spans(("class", "register", "patch")) == [slice(0, 14)]
    assert PLACES.spans(("patch", "class")) == [slice(0, 1), slice(5, 14)]
    assert PLACES.spans(("prompt",)) == []


def test_tokens_that_enter_move_those_behind_them():
    last, middle = PLACES.inserted("prompt", 3), PLACES.inserted("prompt", 3, before="patch")
    assert last.span("prompt") == slice(14, 17) and last.span("patch") == slice(5, 14)
    assert middle.span("prompt") == slice(5, 8) and middle.span("patch") == slice(8, 17)
    assert last.only(last.without("prompt")) == middle.only(middle.without("prompt")) == PLACES
    with pytest.raises(ValueError, match="tokens of the kind 'prompt' already"):
        last.inserted("prompt", 3)


def test_fewer_patches_leave_the_others_where_they_are():
    fewer = PLACES.resized("patch", 5)
    assert fewer.span("register") == slice(1, 5) and fewer.span("patch") == slice(5, 10) and len(fewer) == 10
    assert fewer.count("patch") == 5 and fewer.count("prompt") == 0
