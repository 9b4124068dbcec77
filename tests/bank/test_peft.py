"""A mixed batch answers each image as PEFT does with the image's adapter alone in timm's model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from banks import METHODS, SIDES, base_of, folder_of, network, pixels
from peft_reference import logits, opened

THEIRS = 2e-5
"""The same model in another implementation: sums of some hundred numbers in another order, logits of about 1."""

READ = [method for several in METHODS.values() for method in several if method.in_peft]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A folder of adapters of all methods that PEFT has, the images, and what PEFT says of each with its adapter."""
    base, folder = base_of(), tmp_path_factory.mktemp("adapters")
    adapters, images = folder_of(READ, folder, base), pixels(len(READ))
    expected = {}
    for row, (name, own) in enumerate(adapters.items()):
        heads = {key: tensor for key, tensor in own.tensors.items() if key.startswith("head")}
        model = opened(replace(base, tensors=base.tensors | heads), folder / name)
        expected[name] = logits(model, network("torch").pixels(images[[row]]).permute(0, 3, 1, 2))[0]
    return folder, images, expected


@pytest.mark.parametrize("side", SIDES)
def test_each_row_is_what_peft_says_of_it(side, theirs):
    folder, images, expected = theirs
    bank = SIDES[side].load_adapters(network(side), Path(folder))
    for name, found in zip(expected, bank.logits(images, list(expected)), strict=True):
        np.testing.assert_allclose(found, expected[name], rtol=0, atol=THEIRS, err_msg=name)
