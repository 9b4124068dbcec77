"""A folder of a few adapters, which no test changes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from banks import SIDES, base_of, folder_of, network

from mlx_peft.config.methods import VPT, LoRA


@pytest.fixture(params=SIDES)
def side(request):
    return request.param


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Six adapters of one form, and one with prompts: their base, folder, tensors and names."""
    base, folder = base_of(), tmp_path_factory.mktemp("few")
    adapters = folder_of([*[LoRA(rank=4)] * 6, VPT(tokens=2)], folder, base)
    return SimpleNamespace(base=base, folder=folder, adapters=adapters, names=list(adapters))


@pytest.fixture
def opened(side, few):
    """``opened(budget=None)`` gives a bank of them."""
    return lambda budget=None: SIDES[side].load_adapters(network(side), few.folder, budget)
