"""Old LoRA-ViT files, as the public tool saved them: what they compute, what is assumed, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from comparing import LOGITS, relative
from foreign_models import pixels, shaken
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch
from torch import nn
from typer.testing import CliRunner

from mlx_peft.artifacts.load import load_run
from mlx_peft.cli.app import app

NAME, RANK, CLASSES, DEPTH, DIM, SIZE = "vit_tiny_patch16_224.augreg_in21k", 4, 3, 12, 192, 32


class QKV(nn.Module):
    """The tool's layer: ``qkv[:, :, :dim] += (alpha // r) * b_q(a_q(x))``, and the same of v behind."""

    def __init__(self, qkv: nn.Module, factors: list[torch.Tensor], scale: int) -> None:
        super().__init__()
        self.qkv, self.factors, self.scale = qkv, factors, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a_q, b_q, a_v, b_v = self.factors
        qkv = self.qkv(x)
        qkv[:, :, :DIM] += self.scale * (x @ a_q.T @ b_q.T)
        qkv[:, :, -DIM:] += self.scale * (x @ a_v.T @ b_v.T)
        return qkv


def tensors() -> dict[str, np.ndarray]:
    """The file's: the tool counts q and v of a block one after the other."""
    random = np.random.default_rng(0)
    found = {}
    for index in range(2 * DEPTH):
        found[f"w_a_{index:03d}"] = random.normal(0, 0.1, (RANK, DIM)).astype(np.float32)
        found[f"w_b_{index:03d}"] = random.normal(0, 0.1, (DIM, RANK)).astype(np.float32)
    return found | {f"fc_{DIM}in_{CLASSES}out": random.normal(0, 0.1, (CLASSES, DIM)).astype(np.float32)}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """timm's model, and its file."""
    torch.manual_seed(0)
    model = shaken(timm.create_model(NAME.partition(".")[0], num_classes=CLASSES, img_size=SIZE))
    file = tmp_path_factory.mktemp("base") / "base.safetensors"
    save_torch(model.state_dict(), file)
    return model, file


@pytest.fixture
def old(tmp_path) -> Path:
    file = tmp_path / "mytask.lora.safetensors"
    save_file(tensors(), file)
    return file


def reference(model: nn.Module, scale: int) -> np.ndarray:
    """The tool's logits with a head without a bias."""
    held = {name: torch.from_numpy(tensor) for name, tensor in tensors().items()}
    plain = [block.attn.qkv for block in model.blocks]
    for index, block in enumerate(model.blocks):
        names = (f"w_{kind}_{2 * index + part:03d}" for part in range(2) for kind in "ab")
        block.attn.qkv = QKV(plain[index], [held[name] for name in names], scale)
    with torch.no_grad():
        x = ((torch.from_numpy(pixels(SIZE)) / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)
        features = model.forward_head(model.forward_features(x), pre_logits=True)
    for block, qkv in zip(model.blocks, plain, strict=True):
        block.attn.qkv = qkv
    return (features @ held[f"fc_{DIM}in_{CLASSES}out"].T).numpy()


def convert(file: Path, out: Path, base: Path, *more: str):
    where = ["--model", NAME, "--weights", str(base), "--image-size", str(SIZE)]
    return CliRunner().invoke(app, ["convert", str(file), str(out), "--to", "peft", *where, *more], obj="torch")


@pytest.mark.parametrize(("options", "scale"), [((), 1), (("--alpha", "11"), 2)], ids=["2023", "2024"])
def test_an_old_file_becomes_an_adapter_with_the_tools_logits(base, old, options, scale, tmp_path):
    model, file = base
    done = convert(old, tmp_path / "adapter", file, "--no-verify", *options)
    assert done.exit_code == 0, done.output
    assert f"B A is added {scale} times" in done.output and "no bias of the head" in done.output
    expected = reference(model, scale)
    for backend in ("torch", "mlx"):
        loaded = load_run(tmp_path / "adapter", backend, weights=str(file))
        assert relative(loaded.model.logits(pixels(SIZE)), expected) <= LOGITS
        assert (loaded.adapter.method.targets, loaded.adapter.method.rank) == (("q", "v"), RANK)


def test_info_says_what_it_is_and_other_commands_what_to_do(old):
    told = json.loads(CliRunner().invoke(app, ["info", str(old), "--json"]).stdout)
    assert (told["kind"], told["over"], told["rank"], told["classes"]) == ("adapter", "LoRA-ViT's file", RANK, CLASSES)
    refused = CliRunner().invoke(app, ["predict", str(old), "image.png"], obj="torch", prog_name="mlx-peft")
    assert refused.exit_code == 2 and "is an old file of LoRA-ViT: make a folder of it first" in refused.stderr
    assert f"convert {old} FOLDER --to peft" in refused.stderr  # by whichever of the two doors


def without(*names: str):
    return lambda held: {name: tensor for name, tensor in held.items() if name not in names}


def shaped(name: str, shape: tuple[int, ...]):
    return lambda held: held | {name: np.zeros(shape, np.float32)}


DAMAGE = {
    "a factor is missing": (without("w_b_003"), "a w_a and a w_b of q and of v for each block.*w_b_003"),
    "v of the last block is missing": (without("w_a_023", "w_b_023"), "of q and of v for each block.*w_a_023"),
    "a block is missing": (
        without("w_a_022", "w_b_022", "w_a_023", "w_b_023"),
        "is of 11 blocks, and there its method is on 12",
    ),
    "all but two blocks are missing": (
        lambda h: {n: t for n, t in h.items() if n < "w_a_004" or "w_b_000" <= n < "w_b_004" or "fc" in n},
        "is of 2 blocks, and there its method is on 12",
    ),
    "no head": (without("fc_192in_3out"), "should have one head, fc_192in_CLASSESout, not none"),
    "two heads": (shaped("fc_192in_5out", (5, 192)), "should have one head"),
    "a head of another width": (
        lambda h: {n.replace("192in", "64in"): t for n, t in h.items()},
        "fc_64in_3out has the",
    ),
    "another rank": (shaped("w_a_005", (2, 192)), r"w_a_005 \(2, 192\)"),
    "an empty factor": (shaped("w_a_000", (0, 192)), r"w_a_000 is \(0, 192\)"),
    "not a number": (lambda h: h | {"w_a_001": np.full((4, 192), np.nan, np.float32)}, "w_a_001"),
    "another tensor": (shaped("../w_a_000", (4, 192)), "none of LoRA-ViT's file"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_files_are_refused_by_name(base, case, tmp_path):
    change, reason = DAMAGE[case]
    save_file(change(tensors()), tmp_path / "old.safetensors")
    done = convert(tmp_path / "old.safetensors", tmp_path / "adapter", base[1], "--no-verify")
    assert done.exit_code == 2 and not (tmp_path / "adapter").exists()
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(done.stderr)


def test_an_alpha_that_adds_nothing_and_one_of_another_file_are_refused(base, old, tmp_path):
    done = convert(old, tmp_path / "adapter", base[1], "--alpha", "3")
    assert done.exit_code == 2 and "alpha 3 is below the rank 4" in done.stderr
    done = convert(base[1], tmp_path / "adapter", base[1], "--alpha", "3")
    assert done.exit_code == 2 and "is no old file of LoRA-ViT" in done.stderr
