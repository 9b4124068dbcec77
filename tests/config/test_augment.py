"""What of augmentation, sampling and weights may be combined, and what is refused in so many words."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from mlx_peft.config import schema


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": [1.0, 0.5], "crop": "random_resized"}, "a smaller and a larger number above 0"),
        ({"randaugment": {}, "color_jitter": {}}, "choose it or color_jitter"),
        ({"color_jitter": {"brightness": 0, "contrast": 0, "saturation": 0}}, "changes nothing"),
        ({"mix_probability": 0.5}, "needs mixup or cutmix"),
        ({"mixup": 0.8, "cutmix_share": 0.3}, "needs both mixup and cutmix"),
        ({"repeats": 3}, "the same pixels again"),
        ({"repeats": 3, "mixup": 0.8}, "the same pixels again"),
        ({"erasing": {"area": [0.5, 1.5]}}, "at most 1"),
        ({"erasing": {"ratio": [0.0, 1.5]}}, "above 0"),
        ({"randaugment": {"magnitude": 31}}, "less than or equal to 30"),
    ],
    ids=str,
)
def test_what_does_not_fit_together_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        schema.Augment.model_validate(options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": "class", "class_weights": "balanced"}, "twice: choose one"),
        ({"sampling": "class", "augment": {"flip": True, "repeats": 2}}, "leave augment.repeats out"),
        ({"batch_size": 1, "augment": {"cutmix": 1.0}}, "batch_size of 2"),
    ],
    ids=str,
)
def test_so_is_data_that_makes_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        schema.Data.model_validate({"name": "folder"} | options)


def test_an_experiment_reads_back_what_it_writes() -> None:
    written = schema.Data(
        name="folder", augment={"crop": "random_resized", "randaugment": {}, "mixup": 0.8, "cutmix": 1.0, "repeats": 3}
    )
    assert schema.Data.model_validate_json(written.model_dump_json(), strict=True) == written
    assert written.soft_targets and written.augment.changes_pixels and written.augment.changes_image
    assert not schema.Augment(mixup=1.0).changes_image
    assert schema.Data(name="folder", class_weights="balanced").soft_targets
