"""How much of an update is left once the sum of a quantised base and the update is quantised again.

    mlx-peft merge RUN plain --dequantize
    mlx-peft merge RUN again --requantize
    python tests/bench/kept_update.py BASE plain again

BASE is the float32 file that the run's base was quantised from. For each layer with an update U of the dequantised base
W, what is left is <Q - W, U> / <U, U>, Q being the weight after quantising again: 1 where all is kept, 0 where none is.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
from safetensors.numpy import load_file

from mlx_peft.codes.affine import dequantized


def main(base: str, plain: str, again: str) -> None:
    form = json.loads(Path(again, "config.json").read_text())["quantization"]
    start, merged = load_file(base), load_file(Path(plain, "model.safetensors"))
    codes = load_file(Path(again, "model.safetensors"))
    for name in sorted(name.removesuffix(".scales") for name in codes if name.endswith(".scales")):
        parts = mx.quantize(mx.array(start[f"{name}.weight"]), group_size=form["group_size"], bits=form["bits"])
        weight = dequantized(*map(np.array, parts), form["bits"])
        update = merged[f"{name}.weight"] - weight
        if not update.any():
            continue
        left = dequantized(*(codes[f"{name}.{part}"] for part in ("weight", "scales", "biases")), form["bits"]) - weight
        share = float((left * update).sum() / np.square(update).sum())
        size = float(np.abs(update).mean() / np.abs(codes[f"{name}.scales"]).mean())
        print(f"{name:<24} update {size:.2f} of a step, {100 * share:3.0f} % left")


if __name__ == "__main__":
    main(*sys.argv[1:])
