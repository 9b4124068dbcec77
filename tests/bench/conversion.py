"""What converting a ViT-B costs.

    python tests/bench/conversion.py [ROUNDS]

Makes a ViT-B/16 with random weights in each format, and converts it with ``--no-verify``, each time in a process of its
own, the file in the page cache. Prints a Markdown table: the least seconds of the rounds, start of the interpreter and
waiting for the disk included, and the largest resident memory, which the mapped pages of the file are part of.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from googles import googles

from convert.base import load_base
from convert.timm.write import write_model
from mlx_peft.artifacts.convert import convert
from mlx_peft.config.schema import Model

NAME = "vit_base_patch16_224.augreg_in21k"
PAIRS: list[tuple[str, str, list[str]]] = [
    ("timm", "mlx", []),
    ("timm", "transformers", []),
    ("timm", "torchvision", []),
    ("timm", "timm", ["--dtype", "bfloat16"]),
    ("transformers", "mlx", []),
    ("torchvision", "timm", ["--model", "vit_b_16.IMAGENET1K_V1"]),
    ("pth", "timm", ["--model", NAME]),
    ("bfloat16 pth", "timm", ["--model", NAME]),
    ("bfloat16 safetensors", "timm", ["--model", NAME]),
    ("npz", "timm", []),
]
"""A source, a format, and what else is said."""

TIMED = """
import json, re, resource, sys
from mlx_peft.cli import main
try:
    main()
except SystemExit as end:
    status = end.code
usage = resource.getrusage(resource.RUSAGE_SELF)
if sys.platform == "darwin":
    peak = usage.ru_maxrss
else:  # there ru_maxrss begins with that of the process that started this one
    peak = 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
print(json.dumps([status, peak, usage.ru_utime + usage.ru_stime]))
"""


def sources(folder: Path) -> dict[str, Path]:
    """The same model in every format that can be a source."""
    base = load_base(Model(name=NAME, weights="none"), 1000, seed=0)
    write_model(folder / "timm", base=base, tensors=base.tensors)
    for to in ("transformers", "torchvision"):
        convert(str(folder / "timm"), folder / to, to, verify=False)
    torch.save({name: torch.from_numpy(tensor) for name, tensor in base.tensors.items()}, folder / "a.pth")
    half = {name: torch.from_numpy(tensor).bfloat16() for name, tensor in base.tensors.items()}
    torch.save(half, folder / "b.pth")
    save_file(half, folder / "b.safetensors")
    np.savez(folder / "a.npz", **googles(base.tensors, base.architecture.num_heads))
    named = {name: folder / name for name in ("timm", "transformers", "torchvision")}
    files = {"pth": "a.pth", "npz": "a.npz", "bfloat16 pth": "b.pth", "bfloat16 safetensors": "b.safetensors"}
    return named | {kind: folder / file for kind, file in files.items()}


def weigh(path: Path) -> int:
    """The bytes of the weights, which are in the page cache once they are read here."""
    file = path / "model.safetensors" if path.is_dir() else path
    with open(file, "rb") as opened:
        while opened.read(2**24):
            pass
    return file.stat().st_size


def once(source: Path, out: Path, to: str, more: list[str]) -> tuple[float, float, int]:
    """Seconds, seconds of the CPU and bytes of one conversion."""
    command = ["convert", str(source), str(out), "--to", to, "--no-verify", *more]
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", TIMED, *command], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    status, peak, busy = json.loads(done.stdout.splitlines()[-1])
    if status:
        raise SystemExit(done.stderr)
    shutil.rmtree(out)
    return seconds, busy, peak


def main(rounds: int) -> None:
    system = f"{platform.system()} {platform.release().partition('-')[0]}, {platform.machine()}"
    print(f"{system}, {os.cpu_count()} cores, Python {platform.python_version()}, {rounds} rounds\n")
    print("| from | to | file (MB) | seconds | CPU seconds | peak memory (MB) | peak / file |")
    print("|---|---|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        found = sources(Path(folder))
        for kind, to, more in PAIRS:
            size = weigh(found[kind])
            runs = [once(found[kind], Path(folder, "out"), to, more) for _ in range(rounds)]
            seconds, busy, peak = min(run[0] for run in runs), min(run[1] for run in runs), max(run[2] for run in runs)
            options = f" {' '.join(more)}" if "--dtype" in more else ""
            print(
                f"| {kind} | {to}{options} | {size / 1e6:.0f} | {seconds:.2f} | {busy:.2f} | {peak / 1e6:.0f} "
                f"| {peak / size:.2f} |"
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
