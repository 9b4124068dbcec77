"""Opens data sets, each in a fork of its own, which begins with the libraries loaded and no other set: run by
test_readers.py.

Of each line of standard input, a set's name, its root and a file, with tabs between them, it writes the most memory
that the fork had and what was said of the set into the file, and prints the status of the fork.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import PIL.Image  # noqa: F401 - which is loaded once here, and not in each fork
from fuzz_readers import peak_mib

from mlx_peft.config import schema
from mlx_peft.core.errors import UserError
from mlx_peft.data import open_dataset


def opened(name: str, root: str) -> str:
    try:
        open_dataset(schema.Data(name=name, root=Path(root)))
    except UserError as error:
        return f"{peak_mib()}\n{error}"
    return "it was opened"


def child(name: str, root: str, told: str) -> None:
    try:
        Path(told).write_text(opened(name, root), "utf-8")
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


if __name__ == "__main__":
    for line in sys.stdin:
        if not (process := os.fork()):
            child(*line.rstrip("\n").split("\t"))
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
