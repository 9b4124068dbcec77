"""MLX's kernels on Linux, built faster: g++ reads their header once, and not again for each.

MLX writes every function that it compiles and has not met to a file, and has g++ make a library of it. Three quarters
of the time go into the one header that all these files begin with. With a precompiled header the library is the same to
the last byte; it is looked for in every folder of headers, so it is enough to name one more of them before MLX's own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

HEADER = Path("mlx/backend/cpu/compiled_preamble.h")


@cache
def compiler() -> Path | None:
    """A folder with a ``g++`` that has read the header; None where MLX uses none, or it cannot be read.

    It lies beside the kernels that MLX keeps, one for each of its versions, so that it is made once for many processes.
    """
    found = shutil.which("g++")
    if sys.platform != "linux" or found is None:
        return None
    import mlx.core as mx

    headers = Path(mx.__file__).parent / "include"
    folder = Path(tempfile.gettempdir()) / "mlx" / mx.__version__ / "header"
    read, command = folder / HEADER.with_name(HEADER.name + ".gch"), folder / "g++"
    if not (read.exists() and command.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as begun:  # of several processes each makes a whole one
            made, script = Path(begun) / read.name, Path(begun) / command.name
            options = ("-std=c++17", "-O3", "-Wall", "-fPIC", "-I", str(headers))  # MLX's: with others it is not used
            done = subprocess.run(
                [found, *options, "-x", "c++-header", headers / HEADER, "-o", made], capture_output=True, check=False
            )
            if done.returncode:
                return None
            script.write_text(f'#!/bin/sh\nexec "{found}" -I "{folder}" "$@"\n')
            script.chmod(0o755)
            read.parent.mkdir(parents=True, exist_ok=True)
            os.replace(made, read)
            os.replace(script, command)
    return folder
