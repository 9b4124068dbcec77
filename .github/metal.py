"""Tries MLX's device; where it computes nothing, prints the variable by which every process computes on the CPU.

A runner of macOS is a virtual machine, and may have no GPU that Metal knows. To be appended to ``$GITHUB_ENV``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

TRY = "import mlx.core as mx; x = mx.random.normal((64, 64)); assert mx.allclose(x @ mx.eye(64), x, atol=1e-3).item()"
CPU = "import mlx.core as mx\n\nmx.set_default_device(mx.cpu)\n"


def main() -> None:
    done = subprocess.run([sys.executable, "-c", TRY], capture_output=True, text=True, timeout=120)
    if done.returncode == 0:
        print("MLX computes on its own device", file=sys.stderr)
        return
    print(f"MLX computes on the CPU: {done.stderr}", file=sys.stderr)
    folder = Path(tempfile.mkdtemp())
    (folder / "sitecustomize.py").write_text(CPU)
    print(f"PYTHONPATH={folder}")


if __name__ == "__main__":
    main()
