"""Writes down what the version that is installed says of its files: ``expected.py FOLDER``, after ``write.py``."""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from reading import BACKENDS, ROUNDS, answering, logits, one_thread
from safetensors.numpy import save_file

if __name__ == "__main__":
    place = Path(sys.argv[1])
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    found = {"images": images}
    os.environ["MLX_DISABLE_COMPILE"] = "1"  # as write.py
    with one_thread():
        for name in answering(place):
            found |= {f"{backend}/{name}": logits(place / name, backend, images) for backend in BACKENDS}
    save_file(found, place / "logits.safetensors")
    facts = {
        "versions": {name: version(name) for name in ("mlx-peft", "torch", "mlx", "numpy")},
        "rounds": {backend: rounds() for backend, rounds in ROUNDS.items()},
    }
    (place / "made_with.json").write_text(json.dumps(facts, indent=2) + "\n")
