"""Trained by either backend, opened by the other, by peft and by timm: the same logits."""

import json

import numpy as np
import peft
import pytest
import timm
import torch
from comparing import relative
from fake_backend import CLASSES, make_dataset
from halves import half_of

from convert.adapters.peft import read_adapter
from mlx_peft.artifacts.load import load_run
from mlx_peft.artifacts.merge import merge_run
from mlx_peft.config.schema import Experiment
from mlx_peft.training import prepare
from mlx_peft.training.train import train

LOGITS = 1e-5  # relative, float32
ARGS = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
METHODS = {
    "all four": {"name": "lora", "rank": 4, "targets": ["qkv", "proj", "fc1", "fc2"]},
    "queries and values, rank-stabilised": {"name": "lora", "rank": 4, "rslora": True, "targets": ["q", "v"]},
    "distilled": {"name": "lora", "rank": 4, "targets": ["k", "fc2"]},
}
MODELS = {"distilled": "deit_tiny_distilled_patch16_224"}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(one.values, id="-".join(one.values), marks=one.marks) for one in half_of(("mlx", "torch"), METHODS)
    ],
)
def run(request, tmp_path_factory):
    """A finished run of a few steps, its folder and name of the backend that did not train it."""
    backend, method = request.param
    out = tmp_path_factory.mktemp("runs") / "run"
    experiment = Experiment.model_validate(
        {
            "backend": backend,
            "model": {
                "name": MODELS.get(method, "vit_tiny_patch16_224"),
                "weights": "none",
                "image_size": 32,
                "args": ARGS,
            },
            "method": METHODS[method],
            "data": {"name": "colours", "batch_size": 8, "threads": 1},
            "train": {"epochs": 2, "optimizer": {"name": "adamw", "lr": 1e-2}},
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "open_dataset", lambda config, watch=None: make_dataset())
        train(experiment, out)
    return out, {"mlx": "torch", "torch": "mlx"}[backend]


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)


def timm_input(adapter, images):
    mean, std = torch.tensor(adapter.preprocessing.mean), torch.tensor(adapter.preprocessing.std)
    return ((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2)


def test_the_other_backend_opens_it(run, images):
    out, other = run
    logits = [load_run(out, backend).model.logits(images) for backend in (None, other)]
    assert relative(logits[1], logits[0]) <= LOGITS


def test_peft_opens_it_on_timms_model(run, images):
    out, _ = run
    loaded, adapter = load_run(out), read_adapter(out / "adapter")
    name = json.loads((out / "result.json").read_text())["model"]
    model = timm.create_model(name.partition(".")[0], num_classes=len(CLASSES), img_size=32, **ARGS)
    model.load_state_dict({n: torch.from_numpy(np.asarray(t)) for n, t in loaded.base.tensors.items()})
    model = peft.PeftModel.from_pretrained(model, str(out / "adapter")).eval()
    with torch.no_grad():
        logits = model(timm_input(adapter, images)).numpy()
    assert relative(logits, loaded.model.logits(images)) <= LOGITS


def test_timm_opens_the_merged_model(run, images, tmp_path):
    out, _ = run
    merge_run(out, tmp_path / "merged")
    model = timm.create_model(f"local-dir:{tmp_path / 'merged'}", pretrained=True).eval()
    with torch.no_grad():
        logits = model(timm_input(read_adapter(out / "adapter"), images)).numpy()
    assert relative(logits, load_run(out).model.logits(images)) <= LOGITS
