"""Every plain ViT of timm, two blocks deep and with random weights: saved by timm, converted, and held against timm."""

from __future__ import annotations

import gc
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from comparing import LOGITS, relative
from foreign_models import logits as ours
from foreign_models import on_disk, prepared
from halves import daily

from convert.base import Base, whole
from convert.layouts.layout import Asked
from convert.open import open_path
from mlx_peft.artifacts.convert import convert
from mlx_peft.vit.registry import _data, find, names

DEPTH = {"depth": 2}
QUICK = (
    "test_vit",
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "vit_xsmall_patch16_clip_224",
    "vit_little_patch16_reg4_gap_256",
)
"""One of each structure that is small; the walk over all takes some twenty minutes and 6 GB."""

SMALL = {
    "vit_base_patch16_siglip_224": 48,
    "vit_small_patch16_dinov3": 48,
    "vit_small_plus_patch16_dinov3_qkvb": 48,
    "eva02_tiny_patch14_224": 42,
    "vit_pe_core_tiny_patch16_384": 48,
    "vit_small_patch16_rope_mixed_ape_224": 48,
    "beit_base_patch16_224": 48,
}
"""One of each structure of timm's ``Eva`` and ``Beit`` that is small, and of a ViT that pools by attention, of which
there is none; and the image size that its own is cut to. Those of 86 million parameters are not of every day."""


def another(size: int, patch: int) -> int:
    """A smaller image, of about half the patches along a side."""
    return patch * (size // patch // 2 + 1)


def image(size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)


def saved_by_timm(name: str, folder: Path, **args: int) -> None:
    """timm's model with every parameter random, in the folder that timm itself writes."""
    torch.manual_seed(0)
    skip = {"weight_init": "skip"} if find(name).architecture.family == "vit" else {}
    model = timm.create_model(name, num_classes=7, **skip, **DEPTH, **args).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            scales = (parameter.ndim == 1 and key.endswith(".weight")) or ".gamma_" in key  # of norms, and of layers
            parameter.normal_(1.0 if scales else 0.0, 0.5 if key == "rope.freqs" or "relative" in key else 0.02)
    timm.models.save_for_hf(model, str(folder), model_args=DEPTH | args, safe_serialization=True)


def converted(source: Path, out: Path, image_size: int | None) -> Base:
    convert(str(source), out, "mlx", image_size=image_size, verify=False)
    return whole(open_path(out, Asked()))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names()]
)
def test_a_model_of_timms_converts_and_gives_timms_logits(name: str, tmp_path: Path) -> None:
    saved_by_timm(name, tmp_path / "timm")
    architecture = find(name.partition(".")[0]).architecture
    own = architecture.img_size
    compare(tmp_path, (own, another(own, architecture.patch_size)), own)


@pytest.mark.parametrize("name", daily(SMALL, *(name for name in SMALL if "base" not in name)))
def test_each_structure_is_converted_at_a_small_image_size(name: str, tmp_path: Path) -> None:
    own = SMALL[name]
    saved_by_timm(name, tmp_path / "timm", img_size=own)
    compare(tmp_path, (own, own + 2 * find(name).architecture.patch_size), own)


def compare(folder: Path, sizes: Sequence[int], own: int) -> None:
    """What is in ``timm`` there, at each image size, with timm and in both backends."""
    for size in sizes:
        resized = {} if size == own else {"img_size": size}
        base = converted(folder / "timm", folder / str(size), resized.get("img_size"))
        images = image(size)
        with torch.no_grad():
            model = timm.create_model(f"local-dir:{folder / 'timm'}", pretrained=True, **resized).eval()
            expected = model(prepared(images, base)).numpy()
        if not resized:
            ours_then = on_disk(folder / str(size))
            for key, tensor in on_disk(folder / "timm").items():
                np.testing.assert_array_equal(ours_then[key], tensor, err_msg=key)
        del model
        assert math.isfinite(float(np.linalg.norm(expected))) and np.ptp(expected) > 0
        for backend in ("torch", "mlx"):
            assert relative(ours(base, backend, images), expected) <= LOGITS, (backend, size)
    gc.collect()


def test_what_is_left_out_is_on_the_page_with_its_reason() -> None:
    page = (Path(__file__).parents[2] / "docs" / "conversion.md").read_text()
    listed = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|$", page.split("## Models that are left out")[1], re.M))
    assert listed == _data()["left_out"]
    assert f"{len(names())} of the {len(names()) + len(listed)} names" in page
