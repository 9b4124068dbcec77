"""A short run with every source of randomness, for ``test_kill_backends``: BACKEND METHOD OUT."""

import sys
from pathlib import Path

from mlx_peft.config.schema import Experiment
from mlx_peft.training.train import train

EXPERIMENT = {
    "model": {
        "name": "vit_tiny_patch16_224",
        "weights": "none",
        "image_size": 16,
        "drop_path": 0.1,
        "head_dropout": 0.1,
        "args": {"patch_size": 4, "embed_dim": 64, "depth": 2, "num_heads": 4},
    },
    "data": {
        "name": "digits",
        "batch_size": 32,
        "augment": {"crop": "padded", "randaugment": {}, "erasing": {}, "mixup": 0.8, "cutmix": 1.0, "repeats": 2},
    },
    "train": {"epochs": 4, "log_every": 1, "checkpoint_every": 3, "clip_norm": 1.0},
}

QUANTIZED = {"bits": 4, "group_size": 32}
TALL = ["qkv", "fc1"]
"""Weights that are higher than wide."""

METHODS = {
    "lora": {"method": {"name": "lora", "rank": 4, "dropout": 0.1, "targets": ["q", "v", "fc1"]}},
    "pissa": {
        "method": {"name": "lora", "init": "pissa", "rank": 4, "dropout": 0.1, "targets": [*TALL, "proj", "fc2"]}
    },
    "dora": {"method": {"name": "lora", "dora": True, "rank": 4, "dropout": 0.1, "targets": TALL}},
    "adalora": {
        "method": {"name": "adalora", "init_rank": 4, "target_rank": 2, "t_init": 20, "t_final": 40, "targets": TALL},
    },
    "vera": {"method": {"name": "vera", "rank": 16, "targets": TALL}},
    "qalora": {"method": {"name": "qalora", "rank": 4, "targets": TALL}, "quantize": QUANTIZED},
    "qlora": {"method": {"name": "lora", "rank": 4, "targets": TALL}, "quantize": QUANTIZED},
    "qat": {"method": {"name": "lora", "rank": 4, "targets": TALL}, "qat": {**QUANTIZED, "scales": "learned"}},
    "fact": {"method": {"name": "fact", "rank": 4}},
    "ia3": {"method": {"name": "ia3"}},
    "adaptformer": {"method": {"name": "adaptformer"}},
    "vpt": {"method": {"name": "vpt", "deep": True}},
    "ssf": {"method": {"name": "ssf"}},
    "bitfit": {"method": {"name": "bitfit"}},
    "layernorm": {"method": {"name": "layernorm"}},
    "linear": {"method": {"name": "linear"}},
    "full": {"method": {"name": "full"}},
}

if __name__ == "__main__":
    backend, method, out = sys.argv[1:]
    experiment = EXPERIMENT | METHODS[method] | {"backend": backend}
    train(Experiment.model_validate(experiment), Path(out), resume=True)
