"""A short run of LoRA with every source of randomness, for ``test_kill_backends``: BACKEND OUT."""

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
    "method": {"name": "lora", "rank": 4, "dropout": 0.1, "targets": ["q", "v", "fc1"]},
    "data": {
        "name": "digits",
        "batch_size": 32,
        "augment": {"crop": "padded", "randaugment": {}, "erasing": {}, "mixup": 0.8, "cutmix": 1.0, "repeats": 2},
    },
    "train": {"epochs": 4, "log_every": 1, "checkpoint_every": 3, "clip_norm": 1.0},
}

if __name__ == "__main__":
    train(Experiment.model_validate(EXPERIMENT | {"backend": sys.argv[1]}), Path(sys.argv[2]), resume=True)
