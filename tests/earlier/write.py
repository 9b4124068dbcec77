"""Writes small files of every kind with the commands of the version that is installed: ``python write.py FOLDER``.

With ``OMP_NUM_THREADS=1``, and on a CPU. Runs are stopped with a signal somewhere in their middle, so that their steps
differ from time to time; the rest does not. Then ``expected.py`` writes down what that version says of the files.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import sklearn.datasets
import sklearn.metrics  # noqa: F401
import torch
import yaml

import torch_ref
from mlx_peft.cli import main
from mlx_peft.cli.app import app
from mlx_peft.config.methods import SSF

Options = dict[str, Any]


def model(width: int = 16, depth: int = 2, **args: Any) -> Options:
    """A model of a few thousand random weights, for images of 8 x 8 pixels."""
    shape = {"patch_size": 4, "embed_dim": width, "depth": depth, "num_heads": 2, "mlp_ratio": 2.0}
    return {"name": "vit_tiny_patch16_224", "weights": "none", "image_size": 8, "args": shape | args}


CODES = {"bits": 4, "group_size": 32}
WIDE = model(32, 1, mlp_ratio=1.0)
OVER_CODES: Options = {"model": WIDE, "quantize": CODES}
THROUGH_CODES: Options = {"model": WIDE, "qat": CODES}
LORA: Options = {"name": "lora", "rank": 2, "targets": ["q", "v", "fc1"]}
ADALORA: Options = {
    "name": "adalora", "init_rank": 3, "target_rank": 2, "t_init": 4, "t_final": 8, "delta_t": 3,
    "targets": ["qkv", "fc2"],
}  # fmt: skip

ADAPTERS: dict[str, Options] = {
    "lora": {"method": LORA},
    "lora-qkv": {"method": LORA | {"targets": "all-linear", "alpha_pattern": {"fc2": 4}, "rank_pattern": {"qkv": 3}}},
    "lora-k-mlx": {"method": LORA | {"targets": ["k", "proj"], "blocks": "last 1"}, "backend": "mlx"},
    "lora-rslora": {"method": LORA | {"rslora": True}},
    "lora-dora": {"method": LORA | {"dora": True, "targets": ["q", "v", "fc2"]}},
    "lora-dora-qkv": {"method": LORA | {"dora": True, "targets": ["qkv"]}},
    "lora-pissa": {"method": LORA | {"init": "pissa", "targets": ["v", "proj"]}},
    "lora-pissa-dora-mlx": {"method": LORA | {"init": "pissa", "dora": True, "targets": ["qkv"]}, "backend": "mlx"},
    "lora-plus": {"method": LORA | {"lora_plus": 4}},
    "adalora": {"method": ADALORA | {"t_init": 1, "t_final": 2, "delta_t": 1}},
    "vera": {"method": {"name": "vera", "rank": 4, "targets": ["q", "v", "fc1"]}},
    "vera-mlx": {"method": {"name": "vera", "rank": 4, "projection_key": 3}, "backend": "mlx"},
    "fact": {"method": {"name": "fact", "rank": 3}},
    "ia3": {"method": {"name": "ia3"}},
    "ia3-inputs": {"method": {"name": "ia3", "targets": ["qkv", "fc1", "fc2"], "feedforward": ["fc1"]}},
    "ssf": {"method": {"name": "ssf"}},
    "ssf-blocks": {"method": {"name": "ssf", "blocks": [1]}},
    "adaptformer": {"method": {"name": "adaptformer", "bottleneck": 3, "dropout": 0.1}},
    "vpt": {"method": {"name": "vpt", "tokens": 2}},
    "vpt-blocks": {"method": {"name": "vpt", "tokens": 2, "blocks": "last 1"}},
    "vpt-deep-mlx": {"method": {"name": "vpt", "tokens": 2, "deep": True}, "backend": "mlx"},
    "bitfit": {"method": {"name": "bitfit"}},
    "layernorm": {"method": {"name": "layernorm"}},
    "linear": {"method": {"name": "linear"}},
    "full": {"method": {"name": "full"}, "model": model(16, 1)},
    "full-blocks-mlx": {"method": {"name": "full", "blocks": [1]}, "backend": "mlx"},
    "qalora": {"method": {"name": "qalora", "rank": 2, "targets": ["q", "v", "fc1"]}, **OVER_CODES},
    "qalora-avg-mlx": {
        "method": {"name": "qalora", "rank": 2, "pool": "avg", "targets": ["qkv"]}, **OVER_CODES, "backend": "mlx",
    },
    "codes-lora": {"method": LORA, **OVER_CODES},
    "codes-lora-2-bits-mlx": {
        "method": LORA, **OVER_CODES, "quantize": {"bits": 2, "group_size": 32}, "backend": "mlx",
    },
    "codes-dora": {"method": LORA | {"dora": True, "targets": ["qkv"]}, **OVER_CODES},
    "codes-adalora": {"method": ADALORA | {"t_init": 1, "t_final": 2, "delta_t": 1}, **OVER_CODES},
    "codes-vera": {"method": {"name": "vera", "rank": 4}, **OVER_CODES},
    "codes-vpt": {"method": {"name": "vpt", "tokens": 2}, **OVER_CODES},
    "codes-bitfit": {"method": {"name": "bitfit"}, **OVER_CODES},
    "qat-lora": {"method": LORA, **THROUGH_CODES},
    "qat-lora-learned": {"method": LORA, **THROUGH_CODES, "qat": CODES | {"scales": "learned"}},
    "qat-full": {"method": {"name": "full"}, **THROUGH_CODES},
    "qat-adalora": {"method": ADALORA | {"t_init": 1, "t_final": 2, "delta_t": 1}, **THROUGH_CODES},
    "qat-vera-mlx": {"method": {"name": "vera", "rank": 4}, **THROUGH_CODES, "backend": "mlx"},
}  # fmt: skip
"""Each method and its variants, over a float base, over codes and through codes; trained for one epoch."""

SHAPES: dict[str, Options] = {
    "distilled": {"distilled": True},
    "registers": {"reg_tokens": 2, "no_embed_class": True, "init_values": 0.5},
    "mean": {"global_pool": "avg", "class_token": False},
    "mean-with-prefix": {"global_pool": "avg", "pool_include_prefix": True, "fc_norm": False, "reg_tokens": 1},
    "map": {"global_pool": "map", "class_token": False, "act_layer": "gelu_tanh"},
    "class-and-mean": {"global_pool": "token_avg"},
    "swiglu": {"mlp_layer": "swiglu", "act_layer": "silu", "scale_mlp_norm": True, "scale_attn_norm": True},
    "swiglu-packed": {"mlp_layer": "swiglu_packed", "act_layer": "silu", "init_values": 0.5},
    "root-mean-square": {"norm_layer": "rmsnorm", "qk_norm": True, "qkv_bias": False, "proj_bias": False},
    "norm-before": {"pre_norm": True, "act_layer": "quick_gelu", "norm_eps": 1e-5, "embed_norm": True},
    "without-positions": {"pos_embed": False, "final_norm": False},
}
"""Fields of an architecture. Under each an adapter of prompts, and a head alone."""

RUNS: dict[str, Options] = {
    "lora": {
        "method": LORA | {"dropout": 0.1},
        "model": model() | {"drop_path": 0.2, "head_dropout": 0.1},
        "data": {"augment": {"crop": "padded", "erasing": {}}},
    },
    "lora-in-parts": {
        "method": LORA | {"dropout": 0.1},
        "model": model() | {"drop_path": 0.2},
        "train": {"accumulate": 2, "clip_norm": 0.5, "label_smoothing": 0.1},
    },
    "lora-in-parts-without-dropout": {"method": LORA, "train": {"accumulate": 2}},
    "adalora": {"method": ADALORA | {"init_rank": 4}},
    "adalora-in-parts": {"method": ADALORA | {"init_rank": 4}, "train": {"accumulate": 2}},
    "codes-lora": {"method": LORA, **OVER_CODES},
    "qat-lora-learned": {"method": LORA, **THROUGH_CODES, "qat": CODES | {"scales": "learned"}},
    "bitfit-mixed": {
        "method": {"name": "bitfit"},
        "data": {"augment": {"mixup": 0.8, "cutmix": 1.0}, "class_weights": "balanced"},
        "train": {"optimizer": {"name": "sgd", "lr": 0.05, "nesterov": True}, "schedule": {"name": "linear"}},
    },
    "vpt-recomputed": {
        "method": {"name": "vpt", "tokens": 2, "deep": True, "dropout": 0.1},
        "train": {"gradient_checkpointing": True},
    },
    "linear": {"method": {"name": "linear"}, "model": model()},
}
"""Runs that are stopped in their middle, on each backend."""

BACKENDS = ("torch", "mlx")
INTERRUPTED = 130
CHECKPOINTS = ("last.safetensors", "best.safetensors")


def start(*arguments: object) -> int:
    """Starts one command in a fork of this process, in which its libraries are imported already."""
    if child := os.fork():
        return child
    sys.argv = ["mlx-peft", *map(str, arguments)]
    try:
        main()
    except SystemExit as ended:
        os._exit(int(ended.code or 0))
    finally:
        os._exit(0)


def mlx_peft(*arguments: object) -> None:
    _, status = os.waitpid(start(*arguments), 0)
    assert not status, arguments


def configured(file: Path, options: Options, train: Options, batch: int) -> Path:
    """The file with an experiment on scikit-learn's digits."""
    optimizer = {"name": "adamw", "lr": 0.01}
    experiment = {
        "backend": "torch",
        "model": model(),
        **options,
        "data": {"name": "digits", "batch_size": batch, "threads": 1} | options.get("data", {}),
        "train": {"optimizer": optimizer, "log_every": 1} | train | options.get("train", {}),
    }
    file.write_text(yaml.safe_dump(experiment))
    return file


def finished(out: Path, options: Options) -> Path:
    """A run of one epoch."""
    config = configured(out.with_suffix(".yaml"), options, {"epochs": 1}, 256)
    mlx_peft("train", config, "--out", out)
    return out


def stopped(out: Path, options: Options) -> tuple[Path, Path]:
    """A run that was stopped, and a copy of it that went on to its end."""
    config = configured(out.with_suffix(".yaml"), options, {"epochs": 3}, 128)
    process, metrics = start("train", config, "--out", out), out / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 18):
        time.sleep(0.001)
    os.kill(process, signal.SIGINT)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == INTERRUPTED, out
    whole = shutil.copytree(out, out.with_name(f"{out.name}-whole"))
    mlx_peft("train", whole / "config.yaml", "--out", whole, "--resume")
    return out, whole


def keep(source: Path, target: Path, *names: str) -> None:
    """Copies files, or all of them where none is named."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not names:
        shutil.copytree(source, target)
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)


def write_adapters(out: Path, work: Path) -> None:
    for name, options in ADAPTERS.items():
        keep(finished(work / name, options) / "adapter", out / "adapters" / name)
    for shape, args in SHAPES.items():
        for method in ({"name": "vpt", "tokens": 2}, {"name": "linear"}):
            name = f"shape-{shape}-{method['name']}"
            keep(finished(work / name, {"model": model(**args), "method": method}) / "adapter", out / "adapters" / name)


def write_runs(out: Path, work: Path) -> None:
    """Finished runs, and stopped ones with where they ended."""
    texts = ("config.yaml", "env.json", "metrics.jsonl", "result.json", "SHA256SUMS.txt")
    files = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter/SHA256SUMS.txt")
    for name in ("lora", "codes-lora", "qat-lora", "vera-mlx"):
        keep(work / name, out / "finished" / name, *texts, *files)
    begun = ("config.yaml", "metrics.jsonl", "SHA256SUMS.txt")
    for backend in BACKENDS:
        for name, options in RUNS.items():
            options = {"model": model(16, 1), **options, "backend": backend}
            half, whole = stopped(work / f"stopped-{name}-{backend}", options)
            checkpoints = [f"checkpoint/{file}" for file in CHECKPOINTS if (half / "checkpoint" / file).exists()]
            keep(half, out / "stopped" / f"{name}-{backend}", *begun, *checkpoints)
            keep(whole / "adapter", out / "ended" / f"{name}-{backend}", "adapter_model.safetensors")
            result = json.loads((whole / "result.json").read_text())
            kept = {key: result[key] for key in ("run_id", "metrics", "splits")}
            (out / "ended" / f"{name}-{backend}" / "result.json").write_text(json.dumps(kept))


def write_models(out: Path, work: Path) -> None:
    """What was merged, quantised and converted."""
    models, small = out / "models", {"model": model(16, 1)}
    models.mkdir(parents=True)
    run = finished(work / "to-merge", {"method": LORA, **small})
    mlx_peft("merge", run, models / "merged", "--backend", "torch")
    wide = finished(work / "to-quantise", {"method": LORA, "model": WIDE})
    mlx_peft("quantize", wide, models / "quantised", "--group-size", 32, "--backend", "torch")
    mlx_peft("convert", run, models / "transformers", "--to", "transformers", "--backend", "torch")
    mlx_peft("convert", run, models / "half", "--to", "timm", "--dtype", "float16", "--backend", "torch")
    mlx_peft("convert", wide, models / "mlx", "--to", "mlx", "--bits", 3, "--group-size", 32)
    mlx_peft("convert", run, models / "peft", "--to", "peft", "--backend", "torch")
    mlx_peft("merge", work / "qalora", models / "qalora", "--backend", "torch")
    mlx_peft("merge", work / "codes-lora", models / "requantised", "--requantize", "--backend", "mlx")
    mlx_peft("merge", work / "codes-bitfit", models / "dequantised", "--dequantize", "--backend", "mlx")
    mlx_peft("merge", work / "qat-lora-learned", models / "through-codes", "--backend", "torch")
    write_several_labels(out, models)


def write_several_labels(out: Path, models: Path) -> None:
    """An adapter that the library wrote, whose base is a folder beside it, and the model it merges into."""
    base, folder = shutil.copytree(models / "merged", out / "adapters" / "base"), out / "adapters" / "several-labels"
    found = torch_ref.create_model("vit_tiny_patch16_224", weights=str(base), num_classes=4, image_size=8)
    torch_ref.add_adapter(found, SSF())
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape)
    torch_ref.save_adapter(found, folder, ["red", "green", "blue", "grey"], multi_label=True)
    mlx_peft("merge", folder, models / "several-labels", "--backend", "torch")


if __name__ == "__main__":
    os.environ["MLX_DISABLE_COMPILE"] = "1"  # which on such models takes longer than all the rest
    place = Path(sys.argv[1])
    scratch = place / "work"
    scratch.mkdir(parents=True)
    warm = configured(scratch / "warm.yaml", ADAPTERS["lora"], {"epochs": 1}, 256)
    app(["train", str(warm), "--out", str(scratch / "warm")], standalone_mode=False, obj="torch")
    write_adapters(place, scratch)
    write_models(place, scratch)
    write_runs(place, scratch)
    shutil.rmtree(scratch)
