"""Adapters of ours written for transformers' classes: peft computes our logits there, whatever the method adapts."""

from __future__ import annotations

import numpy as np
import pytest
from comparing import LOGITS, relative
from foreign_models import pixels
from interop.over_transformers import logits, reopened, saved

from convert.adapters.abroad import of_transformers, write_for
from convert.adapters.peft import Adapter
from convert.base import load_base
from mlx_peft.config.methods import (
    BOFT,
    IA3,
    OFT,
    SSF,
    AdaLoRA,
    LayerNorm,
    LoHa,
    LoKr,
    LoRA,
    MiSS,
    PVeRA,
    RandLoRA,
    RoAd,
    VeRA,
)
from mlx_peft.core.errors import UserError
from mlx_peft.protocols.loading import load_backend

KEPT = ("lora_magnitude_rest", "pissa_A", "pissa_B", "vera_A", "vera_B", "randlora_A", "randlora_B")
METHODS = {
    "a whole qkv": LoRA(rank=3, alpha=5, targets=("qkv", "fc2")),
    "dora of a whole qkv": LoRA(rank=3, dora=True, targets=("qkv", "proj")),
    "dora of k alone": LoRA(rank=2, dora=True, rslora=True, targets=("k",)),
    "pissa of parts": LoRA(rank=2, init="pissa", targets=("q", "v", "fc1")),
    "patterns": LoRA(
        rank=4, targets=("qkv", "fc1"), rank_pattern={"qkv": 2}, alpha_pattern={r"blocks\.1\.mlp\.fc1": 3}
    ),
    "some blocks": LoRA(rank=2, targets=("q", "v"), blocks=(1,)),
    "adalora of a whole qkv": AdaLoRA(init_rank=4, target_rank=2, targets=("qkv", "proj")),
    "vera of parts": VeRA(rank=8, targets=("q", "v", "fc2")),
    "pvera of parts": PVeRA(rank=8, targets=("q", "v", "fc2")),
    "randlora of wholes": RandLoRA(rank=9, alpha=9, targets=("proj", "fc1", "fc2")),
    "loha of parts": LoHa(rank=2, targets=("q", "v", "fc1")),
    "lokr of wholes": LoKr(rank=2, targets=("proj", "mlp")),
    "miss of a whole qkv": MiSS(rank=6, targets=("qkv", "fc2")),
    "road of parts": RoAd(group_size=4, targets=("k", "v", "proj")),
    "oft of a whole qkv": OFT(block_size=2, targets=("qkv", "fc2")),
    "boft of a whole qkv": BOFT(block_size=4, targets=("qkv", "proj")),
    "ia3 of a whole qkv": IA3(targets=("qkv", "fc2"), feedforward=("qkv", "fc2")),
    "norms": LayerNorm(),
}


@pytest.fixture(scope="module", params=["vit", "dinov2"])
def family(request, tmp_path_factory):
    return saved(request.param, tmp_path_factory.mktemp("base"))


def moved(family, method) -> tuple[Adapter, np.ndarray]:
    """The method's adapter away from its start, and the torch side's logits with it."""
    base = load_base(family.named, 3, seed=0)
    built = load_backend("torch").build_model(base, 3, method)
    random = np.random.default_rng(0)
    tensors = {
        name: t if name.endswith(KEPT) else (t + random.normal(0, 0.1, t.shape)).astype(np.float32)
        for name, t in sorted(built.adapter().items())
    }
    built.load_adapter(tensors)
    adapter = Adapter(
        method=method, tensors=tensors, classes=("cat", "dog", "emu"), model=family.named,
        architecture=base.architecture, preprocessing=base.preprocessing, base_sha256=base.sha256, source=base.source,
    )  # fmt: skip
    return adapter, built.logits(pixels())


@pytest.mark.one_in(2)
@pytest.mark.parametrize("case", METHODS)
def test_peft_has_our_logits(family, case, tmp_path):
    adapter, expected = moved(family, METHODS[case])
    write_for(of_transformers, tmp_path / "out", adapter, adapter.architecture)
    assert relative(logits(reopened(family.model(), tmp_path / "out")), expected) <= LOGITS
    again = family.load(tmp_path / "out", "torch")
    assert relative(again.model.logits(pixels()), expected) <= LOGITS


def test_a_method_that_peft_lacks_is_refused(family, tmp_path):
    adapter, _ = moved(family, SSF())
    with pytest.raises(UserError, match="Hugging Face PEFT has no method 'ssf'"):
        write_for(of_transformers, tmp_path / "out", adapter, adapter.architecture)
