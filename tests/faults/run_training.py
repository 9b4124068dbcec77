"""A short run with every source of randomness, whole and killed: ``run_training.py BACKEND METHOD OUT LIVES SEED``.

In ``OUT/whole`` it is made in one piece, in ``OUT/parts`` in so many lives that are killed and a last one.
"""

import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from killing import die_at, life
from training.lives import few_metrics

from mlx_peft.config.schema import Experiment
from mlx_peft.training.metrics_file import MetricsFile
from mlx_peft.training.train import train

EXPERIMENT = {
    "model": {
        "name": "vit_tiny_patch16_224",
        "weights": "none",
        "image_size": 16,
        "drop_path": 0.1,
        "head_dropout": 0.1,
        "args": {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4},
    },
    "data": {
        "name": "digits",
        "batch_size": 32,
        "split": {"val": 0.2, "test": 0.6},
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
        "method": {"name": "adalora", "init_rank": 4, "target_rank": 2, "t_init": 10, "t_final": 20, "targets": TALL},
    },
    "vera": {"method": {"name": "vera", "rank": 16, "targets": TALL}},
    "qalora": {"method": {"name": "qalora", "rank": 4, "targets": TALL}, "quantize": QUANTIZED},
    "qlora": {"method": {"name": "lora", "rank": 4, "targets": TALL}, "quantize": QUANTIZED},
    "qat": {"method": {"name": "lora", "rank": 4, "targets": TALL}, "qat": {**QUANTIZED, "scales": "learned"}},
    "loha": {"method": {"name": "loha", "rank": 4, "targets": TALL}},
    "lokr": {"method": {"name": "lokr", "rank": 4, "targets": TALL}},
    "miss": {"method": {"name": "miss", "rank": 8, "targets": TALL}},
    "randlora": {"method": {"name": "randlora", "rank": 8, "alpha": 16, "dropout": 0.1, "targets": TALL}},
    "pvera": {"method": {"name": "pvera", "rank": 16, "dropout": 0.1, "targets": TALL}},
    "oft": {"method": {"name": "oft", "block_size": 8, "targets": TALL}},
    "boft": {"method": {"name": "boft", "block_size": 8, "targets": TALL}},
    "road": {"method": {"name": "road", "group_size": 8, "targets": TALL}},
    "fact": {"method": {"name": "fact", "rank": 4}},
    "ia3": {"method": {"name": "ia3"}},
    "adaptformer": {"method": {"name": "adaptformer"}},
    "adapter_plus": {"method": {"name": "adapter_plus"}},
    "houlsby": {"method": {"name": "houlsby"}},
    "repadapter": {"method": {"name": "repadapter"}},
    "convpass": {"method": {"name": "convpass"}},
    "lst": {"method": {"name": "lst"}},
    "vpt": {"method": {"name": "vpt", "deep": True}},
    "ssf": {"method": {"name": "ssf"}},
    "bitfit": {"method": {"name": "bitfit"}},
    "layernorm": {"method": {"name": "layernorm"}},
    "linear": {"method": {"name": "linear"}},
    "full": {"method": {"name": "full"}},
}

STEPS, EVENTS = 5, 3000
"""That a life has at most: steps, and then calls and returns, which are those of a step or two."""


def training(backend: str, method: str, out: Path, prepare: Callable[[], None] = lambda: None) -> Callable[[], None]:
    """Starts or resumes the run."""

    def work() -> None:
        prepare()
        train(Experiment.model_validate(EXPERIMENT | METHODS[method] | {"backend": backend}), out, resume=True)

    return work


def die_after(steps: int, event: int) -> None:
    """Arranges a SIGKILL in what follows so many lines of the metrics, of which each step has one."""
    write, written = MetricsFile.write, 0

    def counted(self: MetricsFile, record: dict[str, float]) -> None:
        nonlocal written
        write(self, record)
        written += 1
        if written == steps:
            die_at(event)

    MetricsFile.write = counted


if __name__ == "__main__":
    backend, method, place, lives, seed = sys.argv[1:]
    if backend == "torch":  # once here, and not in each life; MLX takes no time, and a Mac would not let it be forked
        import torch._dynamo  # noqa: F401 - which the first optimiser imports, and takes as long as torch itself
    few_metrics(pytest.MonkeyPatch())
    if int(lives) < 3:
        EXPERIMENT["train"]["epochs"] = 1  # of which so few lives leave some steps
    chance, out = random.Random(int(seed)), Path(place)
    assert not life(training(backend, method, out / "whole"))
    for _ in range(int(lives)):
        steps, event = chance.randint(1, STEPS), chance.randrange(EVENTS)
        prepare = lambda steps=steps, event=event: die_after(steps, event)  # noqa: E731
        assert life(training(backend, method, out / "parts", prepare)), "the run ended before it could be killed"
    assert not life(training(backend, method, out / "parts"))
