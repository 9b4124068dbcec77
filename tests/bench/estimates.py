"""What ``mlx-peft estimate`` says of a step's memory beside what the step held: ten configurations in each backend.

    python tests/bench/estimates.py --out experiments/results/estimate.md

Each is measured in a process of its own, with random weights and images. PyTorch's figure on a CPU is what the model
and its optimiser have, and the most that its allocator gave out besides during a step; MLX's is its own count. What was
measured is kept beside FILE, in FILE.json, and not measured again: estimates are made anew.
"""

import argparse
import json
import shlex
from pathlib import Path

from mlx_peft.adaptation.estimate.devices import Device
from mlx_peft.checks import estimating
from mlx_peft.config import files, recipes
from mlx_peft.core.memory import gib

CONFIGURATIONS = (
    "vit-small-lora-cifar10 data.batch_size=8",
    "dinov2-small-dora-folder model.image_size=224 data.batch_size=8",
    "dinov2-small-adalora-folder data.batch_size=32",
    "dinov2-small-full-folder data.batch_size=16",
    "vit-base-lora-cifar10 method.name=linear data.batch_size=16",
    "dinov2-small-bitfit-folder data.batch_size=32",
    "dinov2-small-vpt-deep-folder data.batch_size=16",
    "dinov2-small-qalora-folder data.batch_size=32",
    "vit-base-lora-cifar10 tokens.name=tome tokens.r=13 train.gradient_checkpointing=true data.batch_size=8",
    "deit-tiny-lora-cifar10 train.precision=bfloat16 train.accumulate=8 data.batch_size=64",
)
"""As they are written behind the command's name."""
TOLERANCE = 0.15
"""A figure that decides whether something fits is of use where it is no further off."""


MISSED: list[str] = []
"""Those that are further off."""


def row(configuration: str, backend: str, known: dict) -> list[str]:
    config, *overrides = shlex.split(configuration)
    experiment = files.load(recipes.locate(config), overrides=[*overrides, f"backend={backend}"])
    base = estimating.base_of(experiment)
    found = estimating.estimate(experiment, base, Device("any", "cpu", 2**60))
    if (name := f"{configuration} {backend}") not in known:
        known[name] = estimating.measure(found)._asdict()
    measured = estimating.Measured(**known[name])
    off = found.step.peak / measured.peak - 1
    if abs(off) > TOLERANCE:
        MISSED.append(f"{configuration} with {backend}: {off:+.1%}")
    kept = ["", ""] if measured.kept is None else [gib(found.step.kept), gib(measured.kept)]
    return [f"`{configuration}`", backend, gib(found.step.peak), gib(measured.peak), f"{off:+.1%}", *kept]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", metavar="FILE", type=Path, required=True)
    parser.add_argument("--backend", nargs="+", default=["torch", "mlx"])
    options = parser.parse_args()
    columns = ["configuration", "backend", "estimated", "measured", "off", "kept, estimated", "kept, measured"]
    lines = [f"| {' | '.join(columns)} |", "|---|---|---:|---:|---:|---:|---:|"]
    kept = options.out.with_suffix(".json")
    known = json.loads(kept.read_text()) if kept.exists() else {}
    for configuration in CONFIGURATIONS:
        for backend in options.backend:
            cells = row(configuration, backend, known)
            kept.write_text(json.dumps(known, indent=1))
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    options.out.write_text("\n".join(lines) + "\n")
    if MISSED:
        raise SystemExit("\n".join(MISSED))


if __name__ == "__main__":
    main()
