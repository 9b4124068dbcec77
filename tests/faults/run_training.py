"""A short run with every source of randomness, for ``test_kill_backends``: BACKEND METHOD OUT."""

import sys
from pathlib import Path

from mlx_peft.config.schema import Experiment
from mlx_peft.engine.train import train

EXPERIMENT = {
    "model": {
        "name": "vit_tiny_patch16_224",
        "weights": "none",
        "image_size": 16,
        "drop_path": 0.1,
        "head_dropout": 0.1,
        "args": {"patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 3},
    },
    "data": {
        "name": "digits",
        "batch_size": 32,
        "augment": {"crop": "padded", "randaugment": {}, "erasing": {}, "mixup": 0.8, "cutmix": 1.0, "repeats": 2},
    },
    "train": {"epochs": 4, "log_every": 1, "checkpoint_every": 3, "clip_norm": 1.0},
}

METHODS = {
    "lora": {"name": "lora", "rank": 4, "dropout": 0.1, "targets": ["q", "v", "fc1"]},
    "pissa": {"name": "lora", "init": "pissa", "rank": 4, "dropout": 0.1, "targets": ["qkv", "proj", "fc1", "fc2"]},
    "dora": {"name": "lora", "dora": True, "rank": 4, "dropout": 0.1, "targets": ["qkv", "fc1"]},
    "vera": {"name": "vera", "rank": 16, "targets": ["qkv", "fc1"]},
    "fact": {"name": "fact", "rank": 4},
    "adaptformer": {"name": "adaptformer"},
    "vpt": {"name": "vpt", "deep": True},
    "ssf": {"name": "ssf"},
    "bitfit": {"name": "bitfit"},
    "full": {"name": "full"},
}
"""On weights higher than wide (qkv, fc1) where a method has targets."""

if __name__ == "__main__":
    backend, method, out = sys.argv[1:]
    experiment = EXPERIMENT | {"backend": backend, "method": METHODS[method]}
    train(Experiment.model_validate(experiment), Path(out), resume=True)
