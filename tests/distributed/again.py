"""A run that ``torchrun`` starts again: ``again.py FOLDER``. In its first life the second process is killed."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from distributed.ranks import SETTINGS, at_exchange, experiment, small

from mlx_peft.training.train import train

if __name__ == "__main__":
    small()
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == "1":
        import torch_ref.world  # noqa: F401

        at_exchange("torch", 20, lambda: os.kill(os.getpid(), signal.SIGKILL))
    train(experiment("torch", SETTINGS["lora"], epochs=8), Path(sys.argv[1]) / "run", resume=True)
